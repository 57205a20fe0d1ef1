"""What can go wrong with a store, said in one line that names the remedy."""

from __future__ import annotations

import difflib
import errno
import shutil
from collections.abc import Iterable
from pathlib import Path


class StoreError(RuntimeError):
    """A store cannot do what was asked; the message is one line and says what to do about it."""


class DamagedChunkError(StoreError):
    """A committed chunk is missing, cut short, or differs from its recorded checksum."""


class DamagedMetadataError(DamagedChunkError):
    """A `zarr.json` is missing, or does not say what a store of this format says."""


class NotCommittedError(StoreError):
    """The rows asked for belong to samples that are not completely stored (yet)."""


class StoreBusyError(StoreError):
    """Another live writer owns samples of the range, or has already committed the chunk."""


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM}


def disk_error(error: OSError, path: object, needed: int) -> StoreError:
    """Return the `StoreError` that explains a failed write of `needed` bytes at `path`."""
    if error.errno in _NO_SPACE and isinstance(path, Path):
        parent = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(parent).free
        return StoreError(
            f"no space left for {path}: {needed} bytes needed, {free} free ({error.strerror}); everything "
            f"committed is kept: free some space and run the same command again to resume"
        )
    if error.errno in _NO_PERMISSION:
        return StoreError(
            f"cannot write {path} ({error.strerror}): the place is read-only for this user; "
            f"choose a writable path or change its permissions"
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return StoreError(
            f"cannot write {path} ({error.strerror}): the store, or a folder of it, was deleted or moved while "
            f"it was written: resume it where it is now, or begin again"
        )
    place = "disk" if isinstance(path, Path) else "connection"
    return StoreError(f"cannot write {path} ({error.strerror or error}): check the {place}, then resume")


def unreadable(place: object, error: OSError) -> StoreError:
    """Return the `StoreError` for a file or folder that is there and cannot be read: it is not damage."""
    reason = error.strerror or " ".join(str(error).split())
    if error.errno in _NO_PERMISSION:
        return StoreError(f"cannot read {place} ({reason}): change its permissions, or run as another user")
    return StoreError(f"cannot read {place} ({reason}): check the disk or the connection, then try again")


def gone(root: object) -> StoreError:
    """Return the `StoreError` for a store that was there when it was opened."""
    return StoreError(f"{root} has been deleted or moved while it was in use: open it where it is now")


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown `name`: the nearest known one, then all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {what} {name!r}{hint} this store has {', '.join(map(repr, names)) or 'none'}"
