"""Files that are either absent or complete, and stay so after a crash or a power cut.

Order matters: data reach the disk before the name that makes them visible, and that name before anything
that refers to it. zarr's own local store renames but never syncs.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".tmp"
PIECE = 2**21
"""Bytes a call: where memory is scarce ext4 takes up to twice as long over 16 MiB at once."""


def temporary(path: Path) -> Path:
    """Return a fresh hidden name in the folder of `path`, so that a rename stays on one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Return whether a file name was made by `temporary`."""
    return name.startswith(".") and name.endswith(_SUFFIX)


@contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a fresh name beside `path`; what is written there takes its place when the block ends well.

    So a file is the old or the new one, whole, even if the process is killed; with `sync` after a power cut too.
    The folder is made if there is none.

    Raises:
        OSError: the disk is full, read-only or broken; `path` is as it was, and no temporary file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary(path)
    try:
        yield aside
        if sync:
            with aside.open("rb") as file:
                sync_file(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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


def reserve(descriptor: int, nbytes: int) -> None:
    """Allocate a file's blocks at once, which saves ext4 up to a third of the time that the writes take.

    A full disk shows here, before anything is written. File systems that cannot reserve are left to allocate
    while they are written to.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise


def write_at(descriptor: int, part: memoryview | bytes, offset: int) -> None:
    """Write all of `part` at `offset` of an open file.

    Raises:
        OSError: the disk is full or broken; some of it may have been written.
    """
    rest = memoryview(part)
    while rest:
        count = os.pwrite(descriptor, rest[:PIECE], offset)
        rest, offset = rest[count:], offset + count


def read_at(descriptor: int, part: memoryview, offset: int) -> None:
    """Fill `part` from `offset` of an open file.

    Raises:
        OSError: it cannot be read, or the file ends before.
    """
    while part:
        count = os.preadv(descriptor, [part], offset)
        if not count:
            raise OSError(errno.EIO, "the file ends early")
        part, offset = part[count:], offset + count


def stage_file(path: Path, data: bytes | memoryview) -> Path:
    """Write `data` to a temporary file beside `path`, sync it and return its name.

    Raises:
        OSError: the disk is full, read-only or broken; no temporary file stays.
    """
    new = temporary(path)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            write_at(descriptor, data, 0)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return new


def link_file(new: Path, path: Path) -> None:
    """Give a staged file its name unless something is there; the temporary name goes either way.

    Raises:
        FileExistsError: `path` exists.
        OSError: the file system is full, read-only or has no hard links.
    """
    try:
        os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def create_file(path: Path, data: bytes) -> None:
    """Put `data` at `path` unless something is there: of several callers exactly one succeeds.

    The complete file is linked to its name, so that no reader ever sees a part of it.

    Raises:
        FileExistsError: `path` exists.
        OSError: the disk is full, read-only or broken, or its file system has no hard links.
    """
    link_file(stage_file(path, data), path)
    sync_folder(path.parent)
