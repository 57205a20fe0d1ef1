"""A chunk's temporary file, written while the chunk fills."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from .chunkfiles import file_bytes, pieces_of_rows
from .durable import read_at, reserve, sync_file, temporary, write_at
from .zarrjson import ArraySpec


class Draft:
    """The file of a chunk until it has its name. What it holds early is a head start and no more.

    It stays open while `kept` has room for it, since opening hands over the interpreter's lock, and is opened
    anew for every call otherwise, so that a writer of hundreds of arrays does not run out of descriptors.
    """

    def __init__(self, spec: ArraySpec, chunk: int, file: Path, kept: threading.Semaphore) -> None:
        """Make nothing yet; `file` is the name that the chunk will get."""
        self._spec, self._chunk, self._file, self._kept = spec, chunk, file, kept
        self._descriptor = -1
        self._close: weakref.finalize[..., Draft] | None = None
        self._making = threading.Lock()
        self._new: Path | None = None

    def prepare(self) -> None:
        """Make the folder and the file and reserve its blocks, for which a writing thread would have to wait.

        A failure is left to the first write, which meets it again.
        """
        with contextlib.suppress(OSError), self._opened():
            pass

    def write(self, pieces: Iterable[memoryview], at: int) -> None:
        """Put bytes of rows where they belong, the first at place `at` among all rows of the chunk.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        with self._opened() as descriptor:
            for piece in pieces:
                for place, part in pieces_of_rows(self._spec, piece, at):
                    write_at(descriptor, part, place)
                at += len(piece)

    def read(self, content: memoryview) -> None:
        """Fill `content` with the bytes of rows from the first on.

        Raises:
            OSError: they cannot be read, or the file ends before.
        """
        with self._opened() as descriptor:
            for place, part in pieces_of_rows(self._spec, content, 0):
                read_at(descriptor, part, place)

    def finish(self, parts: Iterable[tuple[int, memoryview | bytes]]) -> Path:
        """Write the rest, each part at its place in the file, sync it and return its temporary name.

        Raises:
            OSError: the disk is full, read-only or broken; no temporary file stays.
        """
        try:
            with self._opened() as descriptor:
                for place, part in parts:
                    write_at(descriptor, part, place)
                sync_file(descriptor)
            self._let_go()
        except BaseException:
            self.discard()
            raise
        assert self._new is not None
        return self._new

    def discard(self) -> None:
        """Remove the file: the chunk did not become full, or could not be written."""
        self._let_go()
        if self._new is not None:
            self._new.unlink(missing_ok=True)
            self._new = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        with self._making:
            descriptor = self._descriptor if self._close is not None else self._open()
        try:
            yield descriptor
        finally:
            if self._close is None:
                os.close(descriptor)

    def _let_go(self) -> None:
        if self._close is not None:
            self._close()
            self._close = None
            self._kept.release()

    def _open(self) -> int:
        descriptor = os.open(self._new, os.O_RDWR) if self._new is not None else self._make()
        if self._kept.acquire(blocking=False):
            self._descriptor, self._close = descriptor, weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _make(self) -> int:
        # Not its parents: where those are gone, the store is, and must not seem to be there again.
        self._file.parent.mkdir(exist_ok=True)
        new = temporary(self._file)
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            nbytes = file_bytes(self._spec, self._chunk)
            if nbytes is not None:
                reserve(descriptor, nbytes)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        self._new = new
        return descriptor
