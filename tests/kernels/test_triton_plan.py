"""How a Gram matrix is cut into units: every block once, every row once, balanced, within the fp32 limit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton")

from modegap.kernels._triton.plan import BLOCK, MAX_ROWS, STEP, plan

SHAPES = [4096, 8192, 1152, 200, 5120, (4096, 4096), (4096, 1152), (256, 77)]


@pytest.mark.parametrize("rows", [300, 65_573, 600_011])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_block_is_summed_over_all_rows_once(shape: int | tuple[int, int], rows: int) -> None:
    cut = plan(shape, rows, 132, torch.device("cpu"))
    units = cut.units.tolist()
    assert sorted(cut.queue.tolist()) == sorted(units)
    held: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for *unit, start, stop, slot in units:
        held.setdefault(tuple(unit), []).append((start, stop, slot))
        assert start < stop
        assert start % STEP == 0
        assert slot < 0 or stop - start <= MAX_ROWS, "one fp32 sum over too many rows"
    for ranges in held.values():
        ranges.sort()
        assert ranges[0][0] == 0
        assert ranges[-1][1] == rows
        assert all(one[1] == two[0] for one, two in pairwise(ranges))
    folds = {tuple(fold[:3]): range(fold[3], fold[3] + fold[4]) for fold in cut.folds.tolist()}
    split = {unit: [slot for *_, slot in ranges] for unit, ranges in held.items() if ranges[0][2] >= 0}
    assert {unit: list(slots) for unit, slots in folds.items()} == split
    assert sorted(slot for slots in folds.values() for slot in slots) == list(range(cut.slots))
    blocks = [(panel, block) for panel, *pair in held for block in pair if block >= 0]
    p, q = (shape, shape) if isinstance(shape, int) else shape
    full = {(i, j) for i in range(-(-p // BLOCK)) for j in range(-(-q // BLOCK))}
    if isinstance(shape, int):  # a block above the diagonal stands for its mirror image
        blocks = [(max(pair), min(pair)) for pair in blocks]
        full = {(i, j) for i, j in full if i >= j}
    assert len(blocks) == len(full)
    assert set(blocks) == full


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_programs_share_the_units_evenly(shape: int | tuple[int, int]) -> None:
    cut = plan(shape, 65_536, 132, torch.device("cpu"))
    heads = cut.heads.tolist()
    assert len(heads) == 133
    assert heads[-1] == len(cut.queue)
    counts = [stop - start for start, stop in pairwise(heads)]
    assert max(counts) - min(counts) <= 1
