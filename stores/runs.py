"""Rows on their way from a caller's array into a chunk's file: looked at by one thread while another writes them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from .buffers import bytes_of
from .checksum import combine, crc32c
from .values import absmax

PIECE = 2**21
"""Bytes that are looked at at a time: each call hands over the interpreter's lock, which takes 50 us to get back."""


class Run:
    """Rows that follow those of a chunk and are stored as they are, in pieces.

    Checksums of pieces are combined, which is quick for a length that comes often. So all have the same, but
    for the first of the run and of each block: their checksums go on from what was before.

    Attributes:
        rows: all of them.
        pieces: the same; each lies within one block of the chunk.
        tops: largest absolute value of each piece, once it has been looked at.
        sums: CRC-32C of each piece, once it has been looked at.
    """

    def __init__(self, rows: np.ndarray, before: int, block_rows: int, summed: int) -> None:
        """Cut rows that come after `before` others in a chunk; `summed` is the CRC-32C of those in their block."""
        self.rows = rows
        self.pieces: list[np.ndarray] = []
        self._seeds: list[int | None] = []
        step = max(1, PIECE // max(1, rows[:1].nbytes))
        at, seed = 0, summed
        while at < len(rows):
            end = min(len(rows), at + block_rows - (before + at) % block_rows)
            cuts = [at, *range(at + ((end - at) % step or step), end, step), end]
            self.pieces += [rows[first:last] for first, last in itertools.pairwise(cuts)]
            self._seeds += [seed, *[None] * (len(cuts) - 2)]
            at, seed = end, 0
        self.tops, self.sums = [0.0] * len(self.pieces), [0] * len(self.pieces)

    def look(self, index: int) -> None:
        """Find out about one piece."""
        self.tops[index] = absmax(self.pieces[index])
        self.sums[index] = crc32c(bytes_of(self.pieces[index]), self._seeds[index] or 0)

    @property
    def top(self) -> float:
        """Largest absolute value; not finite if one of them is not."""
        return max(self.tops) if all(map(math.isfinite, self.tops)) else math.nan

    def sum_after(self, index: int, before: int) -> int:
        """Return the CRC-32C of a piece and what is before it in its block, which is `before`."""
        found = self.sums[index]
        return combine(before, found, self.pieces[index].nbytes) if self._seeds[index] is None else found


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
