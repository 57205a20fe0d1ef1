"""A chunk on its way to being full."""

from __future__ import annotations

import numpy as np

from .buffers import bytes_of
from .checksum import crc32c
from .values import FP16_MAX, count_overflow, exponent_for, rescale, store_scaled
from .zarrjson import ArraySpec

_PIECE = 2**19  # bytes copied and summed at a time: the copy stays in a core's own cache between the two


class Filling:
    """The rows of a chunk so far, with their checksums: one pass over memory for both.

    Attributes:
        chunk: which one.
        buffer: uint8 [chunk_bytes], from `aligned_empty`.
        rows: rows it holds.
        absmax: their largest absolute true value.
        overflow: true values beyond 65504 in a float16 chunk.
        exponent: true value = stored value * 2**exponent.
        sums: CRC-32C of each block that is complete.
    """

    def __init__(self, spec: ArraySpec, chunk: int, buffer: np.ndarray) -> None:
        """Start with no row; the buffer may hold old content."""
        self.chunk, self.buffer = chunk, buffer
        self.rows = self.overflow = self.exponent = 0
        self.absmax = 0.0
        self.sums: list[int] = []
        self._spec = spec
        self._values = buffer.view(spec.dtype).reshape(spec.chunk_rows, *spec.shape[1:])
        self._content = bytes_of(buffer)
        self._step = max(1, _PIECE // max(1, spec.row_bytes))
        self._summed = self._sum = 0

    def add(self, rows: np.ndarray, absmax: float) -> None:
        """Add rows that fit, with their largest absolute value.

        Float16 takes what is beyond its range scaled, and what is there already is then scaled too.
        """
        narrow = self._spec.dtype == "float16"
        self.absmax = max(self.absmax, absmax)
        if narrow and absmax > FP16_MAX:
            self.overflow += count_overflow(rows)
            self._scale_to(exponent_for(absmax))
        for at in range(0, len(rows), self._step):
            part = rows[at : at + self._step]
            out = self._values[self.rows : self.rows + len(part)]
            if narrow:
                store_scaled(part, self.exponent, out)
            else:
                out[...] = part
            self.rows += len(part)
            self._sum_to(self.rows * self._spec.row_bytes)

    def finish(self) -> memoryview:
        """Pad the chunk with zeros, complete `sums` and return its bytes."""
        self._values[self.rows :] = 0
        self._sum_to(-(-self.rows // self._spec.block_rows) * self._spec.block_bytes)
        return self._content

    def _scale_to(self, exponent: int) -> None:
        if exponent > self.exponent:
            rescale(self._values[: self.rows], exponent - self.exponent)
            self.exponent = exponent
            self.sums, self._summed, self._sum = [], 0, 0

    def _sum_to(self, stop: int) -> None:
        """Go on with the checksums up to byte `stop`, a new one for each block."""
        size = self._spec.block_bytes
        while self._summed < stop:
            end = min(stop, (len(self.sums) + 1) * size)
            self._sum = crc32c(self._content[self._summed : end], self._sum)
            self._summed = end
            if end == (len(self.sums) + 1) * size:
                self.sums.append(self._sum)
                self._sum = 0
