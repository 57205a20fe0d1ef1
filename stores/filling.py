"""A chunk on its way to being full."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Iterator

import numpy as np

from .buffers import bytes_of
from .checksum import crc32c
from .draft import Draft
from .runs import Run
from .values import (
    FP16_MAX,
    count_overflow,
    exponent_for,
    least_ordinary,
    rescale,
    row_absmax,
    store_scaled,
)
from .zarrjson import ArraySpec

DIRECT = 2**20
"""Bytes of rows from which on they go to the file as they are: fewer are not worth opening it for."""


_COPIED = 2**19  # bytes copied and summed at a time: they stay in a core's own cache between the two
_BRIEF = 2**14  # bytes at most that are copied without numpy, which hands over the interpreter's lock


class Filling:
    """The rows of a chunk so far, with their checksums.

    Large runs of rows that are stored as they are go from the caller's array to the chunk's file; others are
    copied to a buffer first. The file holds the first `written` bytes, the buffer those after them.

    Attributes:
        chunk: which one.
        draft: its file; None where it is created whole.
        buffer: uint8 [chunk_bytes], once something is kept there.
        written: bytes of rows, from the first on, that are in the file.
        rows: rows it holds.
        absmax: their largest absolute true value.
        overflow: true values beyond 65504 in a float16 chunk.
        exponent: true value = stored value * 2**exponent.
        sums: CRC-32C of each block that is complete.
    """

    def __init__(
        self, spec: ArraySpec, chunk: int, take: Callable[[int], np.ndarray], draft: Draft | None = None
    ) -> None:
        """Start with no row; `take` returns a page-aligned uint8 buffer, whose old content does not matter."""
        self.chunk, self.draft = chunk, draft
        self.buffer: np.ndarray | None = None
        self.written = self.rows = self.overflow = self.exponent = 0
        self.absmax = 0.0
        self.sums: list[int] = []
        self._spec, self._take = spec, take
        self._values, self._content = np.empty(0), memoryview(b"")
        self._least: float | None = None
        self._row_bytes, self._block_bytes = spec.row_bytes, spec.block_bytes
        self._step = max(1, _COPIED // max(1, self._row_bytes))
        self._summed = self._sum = 0

    def run(self, rows: np.ndarray) -> Run | None:
        """Return rows that follow as a run, if they would go to the file as they are."""
        spec = self._spec
        if (
            rows.nbytes < DIRECT
            or self.draft is None
            or rows.dtype != spec.dtype
            or self.exponent
            or spec.compressed
        ):
            return None
        self._sum_to(self.rows * self._row_bytes)
        return Run(rows, self.rows, spec.block_rows, self._sum)

    def write(self, run: Run, *, look: bool) -> None:
        """Put rows that follow into the file where they will belong, and change nothing else.

        Until `count` they may be written over. With `look`, each piece is looked at just before.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        assert self.draft is not None
        self.draft.write(self._to_write(run, look=look), self.written)

    def _to_write(self, run: Run, *, look: bool) -> Iterator[memoryview]:
        ready = self.rows * self._row_bytes
        if self.written < ready:
            yield self._content[self.written : ready]
        if not look:
            yield bytes_of(run.rows)
            return
        for index, piece in enumerate(run.pieces):
            run.look(index)
            yield bytes_of(piece)

    def add(self, rows: np.ndarray, absmax: float) -> None:
        """Add finite rows that fit, with their largest absolute value.

        Float16 takes what is beyond its range scaled, and what is there already is then scaled too.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        narrow = self._spec.dtype == "float16"
        if narrow and absmax > FP16_MAX:
            self._scale_to(exponent_for(absmax))
            self.overflow += count_overflow(rows)
        self.absmax = max(self.absmax, absmax)
        if self._least is not None:
            self._least = min(self._least, least_ordinary(row_absmax(rows)))
        self._take_buffer()
        for at in range(0, len(rows), self._step):
            part = rows[at : at + self._step]
            out = self._values[self.rows : self.rows + len(part)]
            if part.nbytes <= _BRIEF and part.dtype == out.dtype and not self.exponent:
                bytes_of(out)[:] = bytes_of(part)
            elif narrow:
                store_scaled(part, self.exponent, out)
            else:
                out[...] = part
            self.rows += len(part)
            if self.rows * self._row_bytes - self._summed >= self._step * self._row_bytes:
                self._sum_to(self.rows * self._row_bytes)

    def least(self) -> float:
        """Return the least of the largest values of its float16 rows that are not next to nothing.

        Raises:
            OSError: what is in the file cannot be read back.
        """
        if self._least is None:
            self._take_buffer()
            self._read_back()
            self._least = math.ldexp(least_ordinary(row_absmax(self._values[: self.rows])), self.exponent)
        return self._least

    def count(self, run: Run) -> None:
        """Add a run that has been looked at and written."""
        self._least = None
        self.absmax = max(self.absmax, run.top)
        for index, piece in enumerate(run.pieces):
            self._summed_to(self._summed + piece.nbytes, run.sum_after(index, self._sum))
        self.rows += len(run.rows)
        self.written = self.rows * self._row_bytes

    def finish(self) -> memoryview:
        """Pad the chunk with zeros, complete `sums` and return its bytes; those before `written` are not there."""
        if self.written == self._spec.chunk_bytes:
            return memoryview(b"")
        self._take_buffer()
        self._values[self.rows :] = 0
        self._sum_to(-(-self.rows // self._spec.block_rows) * self._block_bytes)
        return self._content

    def _take_buffer(self) -> None:
        if self.buffer is None:
            spec = self._spec
            self.buffer = self._take(spec.chunk_bytes)
            self._content = bytes_of(self.buffer)
            self._values = self.buffer.view(spec.dtype).reshape(spec.chunk_rows, *spec.shape[1:])

    def _scale_to(self, exponent: int) -> None:
        if exponent > self.exponent:
            self._take_buffer()
            self._read_back()
            rescale(self._values[: self.rows], exponent - self.exponent)
            self.exponent = exponent
            self.sums, self._summed, self._sum = [], 0, 0

    def _read_back(self) -> None:
        """Bring what is in the file to the buffer.

        Raises:
            OSError: it is not what was written.
        """
        if not self.written:
            return
        assert self.draft is not None
        sums, summed = [*self.sums, self._sum], self._summed
        self.draft.read(self._content[: self.written])
        self.sums, self._summed, self._sum = [], 0, 0
        self._sum_to(summed)
        if sums != [*self.sums, self._sum]:
            raise OSError(errno.EIO, "what was read back is not what was written")
        self.written = 0

    def _sum_to(self, stop: int) -> None:
        """Go on with the checksums up to byte `stop` of the buffer."""
        size = self._block_bytes
        while self._summed < stop:
            stop_here = min(stop, (len(self.sums) + 1) * size)
            self._summed_to(stop_here, crc32c(self._content[self._summed : stop_here], self._sum))

    def _summed_to(self, stop: int, found: int) -> None:
        """Take over the checksum of the block with the byte before `stop`, up to there."""
        self._summed, self._sum = stop, found
        if stop == (len(self.sums) + 1) * self._block_bytes:
            self.sums.append(found)
            self._sum = 0
