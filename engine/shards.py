"""Which rows a worker takes: contiguous shards that a reduction cannot tell from one pass, and a tree of merges.

Shards depend on the rows and on the reduction, never on the number of workers, and so does the order of the
merges: any number of workers, and any number of interruptions, give the same bits.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, RowArray

    from .chunks import Selection

_SHARDS = 64
_LEAST_BYTES, _MOST_BYTES = 16 << 20, 256 << 20
"""A shard is a 64th of the rows between these."""
_STATES = (2, 4)
"""It is also at least twice its result, and four times where that leaves `_FEW` shards: a merge and the transfer before
it took a tenth of the time of a shard of twice its result."""
_FEW = 6
_HALVINGS = 3
_TAIL = 16
_DEVICE_BYTES, _DEVICE_MOST_BYTES, _DEVICE_SHARDS = 2 << 30, 16 << 30, 64
"""On a GPU, whose rows come at 20 GB/s and more, a task costs some 15 ms whatever its rows: a shard has at least the
first, and at most the second where that makes more than so many."""

_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `stop` of a pass, the `index`th of its shards; `rows` of them are wanted."""

    index: int
    start: int
    stop: int
    rows: int


def boundary_of(reduction: Any, device: str | None) -> int:
    """Rows between two places where a pass may be cut without changing how the reduction groups its rows.

    A reduction says so by a method `boundary(device)`; others may be cut anywhere.
    """
    found = getattr(reduction, "boundary", None)
    return 1 if found is None else int(found(device))


@dataclass(frozen=True, slots=True)
class Grain:
    """Rows of a shard, and of the smallest of those at the end: with small ones there, workers end together."""

    target: int
    least: int


def on_gpu(device: str | None) -> bool:
    """Whether rows that are put there pass a GPU, and what is made of them lies there."""
    return device is not None and device.startswith("cuda")


def grain(
    rows: int, row_bytes: int, state_bytes: int, least: int | None = None, device: str | None = None
) -> Grain:
    """What a pass over so many rows is cut into; it depends on the kind of device, but on no number of workers.

    On GPUs shards are of one size, and a power of two of them: the tree of merges is even then, so that workers which
    take runs of shards merge them among themselves, and few results leave a GPU.

    Args:
        rows: of the pass.
        row_bytes: of a row.
        state_bytes: of a shard's result.
        least: bytes of a shard, instead of a 64th of the rows between 16 and 256 MiB (of 2 GiB on a GPU).
        device: where the rows are put; None is the host.
    """
    total = rows * row_bytes
    if on_gpu(device):
        floor = max(_DEVICE_BYTES if least is None else least, _STATES[-1] * state_bytes, 1)
        most = max(_DEVICE_MOST_BYTES, floor)
        few = min(total // floor, _DEVICE_SHARDS)
        count = max(1 << max(few.bit_length() - 1, 0), 1 << max(-(-total // most) - 1, 0).bit_length())
        size = max(1, math.ceil(rows / count))
        return Grain(size, size)
    if least is None:
        floor, least = _LEAST_BYTES, min(max(total // _SHARDS, _LEAST_BYTES), _MOST_BYTES)
    else:
        floor = least
    few, many = (times * state_bytes for times in _STATES)
    target = max(least, few, min(many, total // _FEW))
    smallest = min(max(floor, state_bytes // 3), target)
    return Grain(max(1, math.ceil(target / row_bytes)), max(1, math.ceil(smallest / row_bytes)))


def sizes(rows: int, of: Grain, step: int) -> list[int]:
    """Wanted rows of each shard, multiples of `step` but for the last: equal ones, then smaller and smaller.

    The last sixteenth of the shards, at least two, is half as large, half of that again, and so on down to an eighth
    or to the least. It depends on no number of workers, so that neither do bits and files.
    """
    size = _multiple(of.target, step)
    found: list[int] = []
    left = rows
    tail = max(math.ceil(rows / size / _TAIL), 2) * size if rows > size else 0
    for _ in range(_HALVINGS):
        smaller = _multiple(size // 2, step)
        if not tail or smaller >= size or smaller < of.least:
            break
        while left > max(tail, size):
            found.append(size)
            left -= size
        size, tail = smaller, tail // 2
    while left > 0:
        found.append(min(size, left))
        left -= size
    return found


def cut(
    rows: RowArray,
    start: int,
    stop: int,
    target: int | Grain,
    boundary: int,
    selection: Selection | None = None,
) -> list[Shard]:
    """Shards of about `target` wanted rows over rows `start` to `stop`, cut at multiples of `boundary` of them.

    Without a selection the cuts fall on chunks too where that is possible, so that no chunk is read twice.
    """
    of = target if isinstance(target, Grain) else Grain(target, target)
    if selection:
        return _cut_selected(rows, start, stop, of, boundary, selection)
    step = boundary
    if start % rows.chunk_rows == 0:
        step = cut_step(of, boundary, rows.chunk_rows)
    edges = list(accumulate(sizes(stop - start, of, step), initial=start))
    return [Shard(i, lo, hi, hi - lo) for i, (lo, hi) in enumerate(pairwise(edges))]


def cut_step(of: Grain, boundary: int, chunk_rows: int) -> int:
    """Rows of which a shard has a multiple: of chunks too, where shards stay small enough."""
    whole = math.lcm(boundary, chunk_rows)
    return whole if whole <= 2 * of.target else boundary


def _cut_selected(
    rows: RowArray, start: int, stop: int, of: Grain, boundary: int, selection: Selection
) -> list[Shard]:
    # How many rows are wanted is known at the end only: they are cut into the smallest pieces at first.
    step = _multiple(min(of.least, of.target), boundary)
    pieces = _cut_evenly(rows, start, stop, step, selection)
    ends = list(accumulate(piece.rows for piece in pieces))
    found: list[Shard] = []
    at = first = 0
    for size in sizes(ends[-1] if ends else 0, of, step):
        at += size
        last = bisect_left(ends, at)
        found.append(Shard(len(found), pieces[first].start, pieces[last].stop, size))
        first = last + 1
    return found


def _cut_evenly(rows: RowArray, start: int, stop: int, step: int, selection: Selection) -> list[Shard]:
    edges, counts, seen = [start], [], 0
    for lo in range(start, stop, _WINDOW):
        hi = min(lo + _WINDOW, stop)
        modality = None if selection.modalities is None else rows.modality(lo, hi)
        wanted = np.flatnonzero(selection.mask(rows.sample_of_row(lo, hi), modality))
        # the row after every step-th wanted one
        for at in range(step - seen % step - 1, len(wanted), step):
            edges.append(lo + int(wanted[at]) + 1)
            counts.append(step)
        seen += len(wanted)
    if rest := seen - step * len(counts):
        edges.append(stop)
        counts.append(rest)
    return [
        Shard(i, lo, hi, n) for i, (lo, hi, n) in enumerate(zip(edges[:-1], edges[1:], counts, strict=True))
    ]


def _multiple(target: int, of: int) -> int:
    return max(1, math.ceil(target / of)) * of


def digest(store: ActivationStore, point: str, kind: str, start: int, stop: int) -> str:
    """Hash of the commit records of the chunks that rows `start` to `stop` of a point are in.

    It stands for their bytes, since a record holds its chunk's checksum, and for the plan.
    """
    array = next(a for a in store.arrays if (a.kind, a.owner) == (kind, point))
    log, size = store.commits(array), array.spec.chunk_rows
    lines = [store.plan_hash, array.spec.path]
    for chunk in range(start // size, -(-stop // size)):
        record = log.record(chunk)
        lines.append(f"{chunk} {record.rows} {record.crc32c} {record.exponent}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Node:
    """The merge of leaves `first` to `last` (exclusive); a leaf is a node of one."""

    first: int
    last: int

    @property
    def children(self) -> tuple[Node, ...]:
        """The two nodes it is merged from, the left one a whole power of two; none of a leaf."""
        size = self.last - self.first
        if size < 2:
            return ()
        middle = self.first + (1 << (size - 1).bit_length() - 1)
        return Node(self.first, middle), Node(middle, self.last)


def tree(leaves: int) -> Iterator[Node]:
    """Every node of the merge of so many leaves, children before their parents."""
    stack: list[tuple[Node, bool]] = [(Node(0, leaves), False)] if leaves else []
    while stack:
        node, done = stack.pop()
        if done or not node.children:
            yield node
        else:
            stack.append((node, True))
            stack += [(child, False) for child in reversed(node.children)]


def spans(count: int, most: int) -> Sequence[tuple[int, int]]:
    """0 to `count` in at most `most` contiguous spans of about equal size."""
    edges = np.linspace(0, count, min(most, count) + 1).round().astype(int).tolist() if count else [0]
    return list(pairwise(edges))
