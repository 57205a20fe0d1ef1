"""How a Gram matrix is cut into units of equal work, one program each.

A unit is a 128-row panel of the result against two 128-column blocks, over a range of the summed rows.
Pairing blocks saves a quarter of the traffic from L2 (which limits 128 x 128 tiles on an H100: 7.4 TB/s at
d = 4096), and pairing the leftover blocks of different panels makes 528 blocks exactly 264 units, two full
waves of 132 multiprocessors, where rows of 256 columns would need 272 and a third wave that is nearly empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain

import torch

BLOCK = 128
MAX_ROWS = 32_768
"""Rows summed in fp32 before the sum is flushed into the fp64 master."""
STEP = 128
"""Ranges of rows begin at multiples of this many rows."""
MIN_ROWS = 1024
PANELS = 16
"""Panels served together: 16 panels x 8 pairs of blocks are one wave of an H100 and read 32 column blocks. In
row order a wave at d = 8192 reads 61, its programs drift out of L2, and it takes 1.45 times as long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is summed, int32 tables.

    Attributes:
        units: [n_units, 6] panel, two blocks (-1: none), first row, last row + 1, slot (-1: none), in the order
            in which programs should start. A unit with a slot writes fp32 partial sums there; it has at most
            MAX_ROWS rows.
        queue: the same, one persistent program after the other.
        heads: [processors + 1] where each program's part of the queue begins.
        folds: [n_folds, 5] the units cut along the rows: panel, two blocks, first slot, slots; folding adds
            the partial sums to the master in slot order.
        slots: how many there are.
    """

    units: torch.Tensor
    queue: torch.Tensor
    heads: torch.Tensor
    folds: torch.Tensor
    slots: int


def triangle(blocks: int) -> list[tuple[int, int, int]]:
    """Panel and two column blocks of every unit that covers the lower triangle once.

    Panel i needs blocks 0..i. Panels with an odd number of blocks leave one over; the leftovers of two such
    panels r < s are served by one unit: panel r against blocks r and s, the second of which is written
    transposed.
    """
    pairs: list[tuple[int, int, int]] = []
    for panel in range(blocks):
        columns = list(range(panel + 1))
        if panel % 4 == 0:
            columns.remove(panel)
            partner = panel + 2
            pairs.append((panel, panel, partner if partner < blocks else -1))
        elif panel % 4 == 2:
            columns.remove(panel - 2)
        pairs.extend((panel, columns[k], columns[k + 1]) for k in range(0, len(columns), 2))
    return pairs


def rectangle(panels: int, blocks: int) -> list[tuple[int, int, int]]:
    """Panel and two column blocks of every unit of a full product."""
    return [(i, j, j + 1 if j + 1 < blocks else -1) for i in range(panels) for j in range(0, blocks, 2)]


def _splits(left: int, processors: int, rows: int) -> int:
    """Into how many ranges of rows a partial wave of `left` units is cut, to end soonest.

    Time in full waves, plus 3% of a wave a range for writing and folding its partial sums.
    """
    most = max(1, min(32, rows // MIN_ROWS))
    found = min(range(1, most + 1), key=lambda s: (-(-left * s // processors)) / s + 0.03 * s)
    # A range's partial sums are one fp32 sum, which may not run over more rows than the others.
    return found if found == 1 else max(found, -(-rows // (MAX_ROWS - STEP)))


@lru_cache(maxsize=64)
def plan(shape: tuple[int, int] | int, rows: int, processors: int, device: torch.device) -> Plan:
    """The plan for a lower triangle of width `shape`, or for a full product [p, q], summed over `rows` rows.

    Whole waves run one unit a program, in step, so that the programs of a wave share the rows they read in
    L2; the units of the last, partial wave are cut along the rows.
    """
    if isinstance(shape, int):
        work = triangle(-(-shape // BLOCK))
    else:
        work = rectangle(-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    work.sort(key=lambda unit: (unit[0] // PANELS, unit[1] // 2, unit[0]))
    whole = len(work) // processors * processors
    late = work[whole:]
    parts = _splits(len(late), processors, rows) if late else 1
    length = -(-rows // (parts * STEP)) * STEP if parts > 1 else rows
    starts = range(0, rows, length)
    units = [(*unit, 0, rows, -1) for unit in work[:whole]]
    folds = []
    if parts > 1:
        for k, start in enumerate(starts):
            stop = min(start + length, rows)
            units += [(*unit, start, stop, u * len(starts) + k) for u, unit in enumerate(late)]
        folds = [(*unit, u * len(starts), len(starts)) for u, unit in enumerate(late)]
    else:
        units += [(*unit, 0, rows, -1) for unit in late]
    queues = [units[p::processors] for p in range(processors)]

    def table(lines: Iterable[tuple[int, ...]], width: int) -> torch.Tensor:
        return torch.tensor(list(lines), dtype=torch.int32).reshape(-1, width).to(device)

    return Plan(
        table(units, 6),
        table(chain.from_iterable(queues), 6),
        torch.tensor([0, *accumulate(map(len, queues))], dtype=torch.int32).to(device),
        table(folds, 5),
        len(folds) * len(starts),
    )
