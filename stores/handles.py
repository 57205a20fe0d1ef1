"""An open file of a store, local or remote: what reading a block asks of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .checksum import TRAILER
from .remote import Place, RemotePath
from .summing import read_summed

_AFTER = TRAILER + 1
"""A checksum, and whether the file goes on behind it."""


class Handle(Protocol):
    """An open file."""

    def size(self) -> int:
        """Return its size in bytes."""

    def read_range(self, offset: int, length: int) -> bytes:
        """Return some of its bytes, as many as there are."""

    def fill(self, content: memoryview, offset: int, threads: int = 1) -> int | None:
        """Fill `content` from `offset` on and return its CRC-32C; None if the file ends before."""

    def fill_unchecked(self, content: memoryview, offset: int) -> bool:
        """Fill `content` from `offset` on; return whether the file was long enough."""


class _Local:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._after: tuple[int, bytes] = (-1, b"")

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read_range(self, offset: int, length: int) -> bytes:
        at, tail = self._after
        if at == offset and length <= _AFTER:
            return tail[:length]
        return os.pread(self._descriptor, length, offset)

    def fill(self, content: memoryview, offset: int, threads: int = 1) -> int | None:
        # What is behind the rows comes along, where a call of its own would hand over the interpreter's lock.
        filled = read_summed(self._descriptor, content, offset, threads, _AFTER)
        if filled is None:
            return None
        self._after = offset + len(content), filled[1]
        return filled[0]

    def fill_unchecked(self, content: memoryview, offset: int) -> bool:
        tail = bytearray(_AFTER)
        got = os.preadv(self._descriptor, [content, tail], offset) - len(content)
        self._after = offset + len(content), bytes(tail[: max(got, 0)])
        return got >= 0


class _Remote:
    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._after: tuple[int, bytes] = (-1, b"")

    def size(self) -> int:
        return self._path.size()

    def read_range(self, offset: int, length: int) -> bytes:
        at, tail = self._after
        return tail if (at, len(tail)) == (offset, length) else self._path.read_range(offset, length)

    def fill(self, content: memoryview, offset: int, threads: int = 1) -> int | None:
        # The checksum behind the rows comes along, where a request of its own would wait once more.
        filled = self._path.fill(content, offset, TRAILER)
        if filled is None:
            return None
        self._after = offset + len(content), filled[1]
        return filled[0]

    def fill_unchecked(self, content: memoryview, offset: int) -> bool:
        data = self._path.read_range(offset, len(content))
        content[: len(data)] = data
        return len(data) == len(content)


@contextmanager
def opened(file: Place | str, *, checked: bool = True) -> Iterator[Handle]:
    """Yield an open file.

    `checked=False` leaves it to the reading to fail where it is a pipe or a folder; nobody may believe a size then.

    Raises:
        OSError: there is none, or it cannot be opened.
    """
    if isinstance(file, RemotePath):
        yield _Remote(file)
        return
    # A pipe in a store from elsewhere must not make its reader wait for ever.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if checked and not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file")
        yield _Local(descriptor)
    finally:
        os.close(descriptor)


def size_of(file: Place) -> int:
    """Return the size of a file.

    Raises:
        OSError: there is none, or its size cannot be told.
    """
    return file.size() if isinstance(file, RemotePath) else file.stat().st_size
