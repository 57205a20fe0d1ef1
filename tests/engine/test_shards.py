"""Where passes are cut, how parts are merged, and how they travel."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modegap.engine.batch import ActivationBatch
from modegap.engine.chunks import Selection
from modegap.engine.errors import EngineError
from modegap.engine.moments import Moments
from modegap.engine.packing import Part, load_packed, pack, save_packed, settled, unpack
from modegap.engine.shards import Node, cut, shard_rows, spans, tree


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
    for selection in (None, Selection(modalities=np.array([2], dtype=np.uint8))):
        shards = cut(rows, start, start + n, target, boundary, selection)
        wanted = np.arange(start, start + n)
        if selection is not None:
            wanted = wanted[wanted % 3 == 0]
        assert [shard.index for shard in shards] == list(range(len(shards)))
        assert sum(shard.rows for shard in shards) == len(wanted)
        for before, after in pairwise(shards):
            assert before.stop == after.start
            assert before.rows % boundary == 0
            assert before.rows >= min(target, boundary)
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


def test_shards_hold_at_least_twice_their_result() -> None:
    assert shard_rows(10**6, 8192, 134_000_000) == -(-268_000_000 // 8192)
    assert shard_rows(10**6, 8192, 0) == (10**6 * 8192 // 64) // 8192
    assert shard_rows(10, 8192, 0) == (16 << 20) // 8192
    assert spans(10, 3) == [(0, 3), (3, 7), (7, 10)]
    assert spans(0, 3) == []


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
