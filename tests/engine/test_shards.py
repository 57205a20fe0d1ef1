"""Where passes are cut, how parts are merged, and how they travel."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modegap.engine import packing
from modegap.engine.batch import ActivationBatch
from modegap.engine.chunks import Selection
from modegap.engine.errors import EngineError
from modegap.engine.moments import ClassMoments, Moments
from modegap.engine.packing import Part, load_packed, pack, save_packed, settled, unpack
from modegap.engine.shards import Grain, Node, cut, grain, sizes, spans, tree


class Rows:
    """As much of a RowArray as `cut` asks for; every third row is an image's, samples have ten."""

    def __init__(self, chunk_rows: int) -> None:
        self.chunk_rows = chunk_rows

    def sample_of_row(self, lo: int, hi: int) -> np.ndarray:
        return np.arange(lo, hi) // 10

    def modality(self, lo: int, hi: int) -> np.ndarray:
        return np.where(np.arange(lo, hi) % 3 == 0, 2, 1).astype(np.uint8)


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 200), st.integers(1, 40), st.integers(1, 60))
def test_shards_cover_the_rows_and_begin_on_blocks(
    start: int, n: int, target: int, boundary: int, chunk: int
) -> None:
    rows: Any = Rows(chunk)
    of = Grain(target, max(target // 5, 1))
    for selection in (None, Selection(modalities=np.array([2], dtype=np.uint8))):
        shards = cut(rows, start, start + n, of, boundary, selection)
        wanted = np.arange(start, start + n)
        if selection is not None:
            wanted = wanted[wanted % 3 == 0]
        assert [shard.index for shard in shards] == list(range(len(shards)))
        assert sum(shard.rows for shard in shards) == len(wanted)
        for before, after in pairwise(shards):
            assert before.stop == after.start
            assert before.rows % boundary == 0
            assert before.rows >= min(of.least, boundary)
        if shards:
            assert shards[0].start == start
            kept = np.concatenate([wanted[(wanted >= s.start) & (wanted < s.stop)] for s in shards])
            assert np.array_equal(kept, wanted)


def test_cuts_fall_on_chunks_where_they_can() -> None:
    rows: Any = Rows(24)
    shards = cut(rows, 0, 1000, 100, 16)
    assert all(shard.start % 48 == 0 for shard in shards)


@given(st.integers(1, 200))
def test_a_tree_merges_every_leaf_once(leaves: int) -> None:
    have: set[Node] = set()
    for node in tree(leaves):
        assert all(child in have for child in node.children)
        assert not node.children or node.children[0].last == node.children[1].first
        have -= set(node.children)
        have.add(node)
    assert have == {Node(0, leaves)}
    assert sum(1 for _ in tree(leaves)) == 2 * leaves - 1


def test_shards_are_large_beside_their_result() -> None:
    state, row = 134_000_000, 8192
    assert grain(30_000, row, state) == Grain(-(-2 * state // row), -(-(state // 3) // row))
    assert grain(10**6, row, state).target == -(-4 * state // row)
    assert grain(240_000, row, state).target == 40_000
    assert grain(10**6, row, 0).target == (10**6 * row // 64) // row
    assert grain(10, row, 0) == Grain((16 << 20) // row, (16 << 20) // row)
    assert grain(10**6, row, 0, 1 << 20) == Grain((1 << 20) // row, (1 << 20) // row)
    assert spans(10, 3) == [(0, 3), (3, 7), (7, 10)]
    assert spans(0, 3) == []


def test_shards_of_gpus_are_long_beside_a_task_and_evenly_many() -> None:
    state, row, gib = 134_000_000, 8192, (1 << 30) // 8192
    for nbytes, count in (
        (1, 1),
        (3, 1),
        (4, 2),
        (8, 4),
        (16, 8),
        (31, 8),
        (250, 64),
        (1024, 64),
        (1025, 128),
    ):
        of = grain(nbytes * gib, row, state, device="cuda:0")
        assert len(sizes(nbytes * gib, of, 1)) == count, nbytes
        assert of.least == of.target == -(-nbytes * gib // count)
    assert grain(8 * gib, row, 1 << 30, device="cuda").target == 4 * gib  # at least four times their result
    assert grain(100, row, 0, 1 << 14, device="cuda") == Grain(4, 4)  # 50 would do, 32 are a power of two
    assert grain(0, row, state, device="cuda") == Grain(1, 1)
    assert grain(10**6, row, state, device="cpu") == grain(10**6, row, state)


def test_the_last_shards_are_smaller() -> None:
    assert sizes(1200, Grain(200, 25), 25) == [200] * 4 + [100] * 2 + [50] * 2 + [25] * 4
    assert sizes(1200, Grain(200, 60), 25) == [200] * 4 + [100] * 4
    assert sizes(1210, Grain(200, 200), 25) == [200] * 6 + [10]
    assert sizes(200, Grain(200, 25), 25) == [200]
    assert sizes(0, Grain(200, 25), 25) == []
    many = sizes(200 * 160, Grain(200, 1), 1)
    assert (many.count(200), many.count(100), many.count(50), many.count(25)) == (150, 10, 10, 20)


@given(st.integers(0, 5000), st.integers(1, 900), st.integers(1, 900), st.integers(1, 100))
def test_sizes_cover_the_rows(rows: int, target: int, least: int, step: int) -> None:
    found = sizes(rows, Grain(target, min(target, least)), step)
    assert sum(found) == rows
    assert found[:-1] == sorted(found[:-1], reverse=True)
    assert all(size > 0 for size in found)
    assert all(size % step == 0 for size in found[:-1])
    assert len(found) <= 4 * (rows // target) + 8


def test_workers_end_together_with_small_shards_at_the_end() -> None:
    """Greedy workers, one of them late by half a shard."""

    def idle(shards: list[int]) -> int:
        busy = [0, 100]
        for size in shards:
            busy[busy.index(min(busy))] += size
        return max(busy) - min(busy)

    assert idle(sizes(1200, Grain(200, 200), 25)) == 100
    assert idle(sizes(1200, Grain(200, 25), 25)) == 0


def batch(n: int, seed: int) -> ActivationBatch:
    torch.manual_seed(seed)
    return ActivationBatch((torch.randn(n, 6) + 5).half(), 0, "p")


def test_a_part_travels_without_copies_and_goes_on() -> None:
    whole, half = Moments(block_rows=8), Moments(block_rows=8)
    half.update(batch(30, 0))
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(Part(half, 30), protocol=5, buffer_callback=buffers.append)
    assert sum(one.raw().nbytes for one in buffers) > 6 * 6 * 8
    assert len(stream) < 3000
    there: Part = pickle.loads(stream, buffers=[bytes(one.raw()) for one in buffers])
    assert there.rows == 30
    for one in (whole, there.reduction):
        if one is whole:
            one.update(batch(30, 0))
        one.update(batch(20, 1))
    ours, theirs = whole.finalize(), there.reduction.finalize()
    assert torch.equal(ours.covariance, theirs.covariance)
    assert ours.certificate.kernel_paths == theirs.certificate.kernel_paths


def test_a_part_goes_back_to_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host stands for the GPU here: what counts is which arrays are put there, and that nothing else changes."""
    left, right = Moments(block_rows=8), Moments(block_rows=8)
    left.update(batch(21, 0))
    right.update(batch(16, 1))
    wanted = Part(left, 21).merged(Part(right, 16)).reduction.finalize().covariance
    there: Part = pickle.loads(pickle.dumps(Part(right, 16)))
    assert there._from == {}
    there._from = {0: "cuda:0", 2: "cuda:0"}
    put: list[torch.device | None] = []
    same = packing._moved

    def moved(value: Any, place: torch.device | None) -> Any:
        put.append(place)
        return same(value, None)

    monkeypatch.setattr(packing, "_moved", moved)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert torch.equal(Part(left, 21).merged(there).reduction.finalize().covariance, wanted)
    assert put == []  # there is no such GPU here: it stays on the host
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    again: Part = pickle.loads(pickle.dumps(there))  # from the host on to another worker
    whole = Part(left, 21).merged(again)
    assert torch.equal(whole.reduction.finalize().covariance, wanted)
    assert [i for i, place in enumerate(put) if place is not None] == [0, 2]
    assert len(put) > 3
    assert whole._from == {}


def test_a_merge_leaves_its_parts() -> None:
    left, right = Moments(block_rows=8), Moments(block_rows=8)
    left.update(batch(16, 0))
    template, _ = settled(left, [batch(16, 0)], 8)
    right = template.fresh()
    right.update(batch(16, 1))
    a, b = Part(left, 16), Part(right, 16)
    once, twice = a.merged(b), a.merged(b)
    assert once.rows == 32
    assert torch.equal(once.reduction.finalize().covariance, twice.reduction.finalize().covariance)


def test_a_reduction_settles_as_its_first_block_does() -> None:
    labels = [0, 1, -1] * 20
    for made in (Moments(block_rows=8), Moments("exact"), ClassMoments(labels, 2, block_rows=8)):
        x = (torch.randn(40, 200) + 5).half()
        rows = ActivationBatch(x, 0, "p", sample=torch.arange(40))
        template, size = settled(made, [rows], 8)
        whole = made.fresh()
        whole.update(rows)
        assert torch.equal(
            template.state_dict()["side"]["shift"], whole.fresh().state_dict()["side"]["shift"]
        )
        assert template.state_dict()["side"]["count"] == 0
        assert size == pytest.approx(Part(whole).nbytes, rel=0.2)


def test_a_reduction_that_changes_the_rows_settles_on_those() -> None:
    class Moved(Moments):
        def update(self, batch: ActivationBatch) -> None:
            super().update(replace(batch, x=batch.x + 100))

    template, _ = settled(Moved(block_rows=8), [batch(40, 0)], 8)
    assert template.state_dict()["side"]["shift"].min() > 90


def test_values_of_many_kinds() -> None:
    shared = torch.arange(4.0)
    value = {
        "a": shared,
        "b": shared,
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.empty(0, 5),
        "strided": np.arange(12).reshape(3, 4)[:, ::2],
        "words": np.array(["x", "y"]),
        "scalar": torch.tensor(3),
        "space": SimpleNamespace(n=1),
    }
    found = unpack(pack(value))
    assert found["a"] is found["b"]
    assert found["bf16"].dtype is torch.bfloat16
    assert found["empty"].shape == (0, 5)
    assert np.array_equal(found["strided"], value["strided"])
    assert found["words"].tolist() == ["x", "y"]
    assert int(found["scalar"]) == 3


def test_files_that_are_damaged(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.part"
    save_packed(file, {"x": torch.arange(1000)})
    assert torch.equal(load_packed(file)["x"], torch.arange(1000))
    assert [path.name for path in file.parent.iterdir()] == ["a.part"]
    whole = bytearray(file.read_bytes())
    whole[-100] ^= 1
    file.write_bytes(whole)
    with pytest.raises(EngineError, match="is damaged: remove it"):
        load_packed(file)
    file.write_bytes(whole[:-50])
    with pytest.raises(EngineError, match="remove it"):
        load_packed(file)
