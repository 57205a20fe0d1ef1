"""Which samples share a forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Samples are reordered by length within this many batches only, since their rows wait in memory for their
# turn.
WINDOW_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Batching:
    """Most samples in a batch, and most padded tokens (samples times the longest), None for any number."""

    samples: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Samples `start` to `stop` (exclusive) and the batches, lists of sample indices, they run in."""

    start: int
    stop: int
    batches: tuple[tuple[int, ...], ...]


def schedule(lengths: NDArray[np.int64] | None, count: int, batching: Batching) -> Iterator[Window]:
    """Windows in data set order; inside one, batches of samples of similar length, the longest first.

    A window is as many samples as four full batches hold. A batch has at least one sample, however long.
    It all depends on the arguments only: a resumed run computes the same batches and so the same bytes. The
    longest first makes a window's memory use known at its start.
    """
    sizes = [1] * count if lengths is None else [int(length) for length in lengths[:count]]
    start = 0
    while start < count:
        stop = _window_stop(sizes, start, count, batching)
        members = list(range(start, stop))
        if lengths is not None:
            members.sort(key=lambda index: (-sizes[index], index))
        yield Window(start, stop, tuple(_batches(members, sizes, batching)))
        start = stop


def _window_stop(sizes: list[int], start: int, count: int, batching: Batching) -> int:
    most = min(count, start + batching.samples * WINDOW_BATCHES)
    if batching.tokens is None:
        return most
    total, stop = 0, start
    while stop < most and (stop == start or total + sizes[stop] <= batching.tokens * WINDOW_BATCHES):
        total += sizes[stop]
        stop += 1
    return stop


def _batches(members: list[int], sizes: list[int], batching: Batching) -> Iterator[tuple[int, ...]]:
    while members:
        size = batching.samples
        if batching.tokens is not None:
            size = min(size, batching.tokens // max(1, sizes[members[0]]))
        size = max(1, size)
        yield tuple(members[:size])
        members = members[size:]
