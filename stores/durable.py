"""Files that are either absent or complete, and stay so after a crash or a power cut.

Order matters: data reach the disk before the name that makes them visible, and that name before anything
that refers to it. zarr's own local store renames but never syncs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

_SUFFIX = ".tmp"


def temporary(path: Path) -> Path:
    """Return a fresh hidden name in the folder of `path`, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Return whether a file name was made by `temporary`."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def sync_file(descriptor: int) -> None:
    """Return once the file's data are on the disk."""
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return once the folder's entries (new names, renames, removals) are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, parts: Sequence[memoryview | bytes]) -> None:
    """Create `path` with the parts' bytes and sync it; leave no file behind when that fails."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            for part in parts:
                rest = memoryview(part)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_file(path: Path, *parts: memoryview | bytes) -> None:
    """Put the parts at `path`, replacing what is there; a crash leaves the old file, the new one or neither.

    Raises:
        OSError: the disk is full, read-only or broken; no temporary file stays.
    """
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = temporary(path)
    _write_new(new, parts)
    try:
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    if made:
        sync_folder(path.parent.parent)


def create_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` unless something is there: of several callers exactly one succeeds.

    The complete file is linked to its name, so that no reader ever sees a part of it.

    Raises:
        FileExistsError: `path` exists.
        OSError: the disk is full, read-only or broken, or its file system has no hard links.
    """
    new = temporary(path)
    _write_new(new, (data,))
    try:
        os.link(new, path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)
