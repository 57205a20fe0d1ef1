"""Which rows belong to which sample, and which samples to which chunk.

`bounds` is int64 [samples + 1]: the first row of each sample, then the number of rows. A sample may have
none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def samples_holding(bounds: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Return the first sample with a row in `start` to `stop` and the one after the last."""
    if start >= stop:
        return 0, 0
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    return first, int(np.searchsorted(bounds, stop, side="left"))


def samples_touching(bounds: np.ndarray, chunk_rows: int, flags: np.ndarray) -> np.ndarray:
    """Return bool [samples]: which have a row in a chunk that `flags` [chunks] marks."""
    before = np.concatenate(([0], np.cumsum(flags)))
    starts, stops = bounds[:-1], bounds[1:]
    first = np.minimum(starts // chunk_rows, len(flags))
    touching: np.ndarray = (before[-(-stops // chunk_rows)] > before[first]) & (stops > starts)
    return touching


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """The row ranges of one array, and which samples (bool [samples]) are complete."""

    bounds: np.ndarray
    complete: np.ndarray
    _all: bool = field(init=False)

    def __post_init__(self) -> None:
        """Note once whether every sample is complete, which is what is asked most often."""
        object.__setattr__(self, "_all", bool(self.complete.all()))

    def sample_of_rows(self, start: int, stop: int) -> np.ndarray:
        """Return the int64 [stop - start] sample index of each row."""
        first, last = samples_holding(self.bounds, start, stop)
        return np.repeat(np.arange(first, last), np.diff(np.clip(self.bounds[first : last + 1], start, stop)))

    def first_incomplete(self, start: int, stop: int) -> int:
        """Return the first row of `start` to `stop` whose sample is incomplete, else `stop`."""
        if self._all:
            return stop
        first, last = samples_holding(self.bounds, start, stop)
        has_rows = self.bounds[first + 1 : last + 1] > self.bounds[first:last]
        bad = np.flatnonzero(~self.complete[first:last] & has_rows)
        return stop if not len(bad) else max(start, int(self.bounds[first + bad[0]]))
