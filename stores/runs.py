"""Rows on their way from a caller's array into a chunk's file: looked at by one thread while another writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from .buffers import bytes_of
from .checksum import crc32c
from .values import absmax

PIECE = 2**20
"""Bytes that are looked at at a time: they stay in a core's own cache between magnitude and checksum."""


class Run:
    """Rows that follow those of a chunk and are stored as they are, in pieces.

    Attributes:
        rows: all of them.
        pieces: the same; each lies within one block of the chunk.
        tops: largest absolute value of each piece, once it has been looked at.
        sums: CRC-32C of each piece that has the usual length; that of others costs as much to combine as to compute.
    """

    def __init__(self, rows: np.ndarray, before: int, block_rows: int) -> None:
        """Cut rows that come after `before` others in a chunk."""
        self.rows = rows
        step = max(1, PIECE // max(1, rows[:1].nbytes))
        self.pieces: list[np.ndarray] = []
        at = 0
        while at < len(rows):
            end = min(at + step, len(rows), at + block_rows - (before + at) % block_rows)
            self.pieces.append(rows[at:end])
            at = end
        self._usual = step
        self.tops = [0.0] * len(self.pieces)
        self.sums: list[int | None] = [None] * len(self.pieces)

    def look(self, index: int) -> None:
        """Find out about one piece."""
        piece = self.pieces[index]
        self.tops[index] = absmax(piece)
        if len(piece) == self._usual:
            self.sums[index] = crc32c(bytes_of(piece))

    @property
    def top(self) -> float:
        """Largest absolute value; not finite if one of them is not."""
        return max(self.tops) if all(map(math.isfinite, self.tops)) else math.nan


class Survey:
    """Looking at all pieces of some runs, each done by whichever thread comes first."""

    def __init__(self, runs: Iterable[Run]) -> None:
        """Look at nothing yet."""
        self._pieces = [(run, index) for run in runs for index in range(len(run.pieces))]
        self._turn = itertools.count()

    def work(self) -> None:
        """Look at pieces until none is left."""
        while (turn := next(self._turn)) < len(self._pieces):
            run, index = self._pieces[turn]
            run.look(index)
