"""Reads shared by threads: the same bits, the same errors, reused buffers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    NotCommittedError,
    PointPlan,
    SampleRows,
    StorePlan,
    summing,
)
from modegap.stores.checksum import PIECE, combine, crc32c
from modegap.stores.plan import Profile
from modegap.stores.summing import read_summed

WIDTH = 256
ROWS = 3 * 8192 + 100


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, np.ndarray]:
    """Chunks of 4 MiB, the last one mostly padding."""
    plan = StorePlan({"p": PointPlan(WIDTH, "tokens", np.array([ROWS]))}, ["a"], chunk_bytes=4 * PIECE)
    store = ActivationStore.create(tmp_path_factory.mktemp("big") / "s.zarr", plan)
    rows = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float16)
    with store.writer() as writer:
        writer.put(0, {"p": SampleRows(rows)})
    return store, rows


def test_a_known_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(data=st.binary(max_size=300), cut=st.integers(0, 300))
@settings(max_examples=50, deadline=None)
def test_checksums_combine(data: bytes, cut: int) -> None:
    first, second = data[:cut], data[cut:]
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(data)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 4 * PIECE, 5 * PIECE + 7])
def test_threads_read_the_same_bytes(tmp_path: Path, threads: int, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    file = tmp_path / "f"
    file.write_bytes(b"head" + content)
    more = tmp_path / "more"
    more.write_bytes(b"head" + content + b"tail")
    buffer = bytearray(size)
    descriptor, longer = os.open(file, os.O_RDONLY), os.open(more, os.O_RDONLY)
    try:
        assert read_summed(descriptor, memoryview(buffer), 4, threads) == (crc32c(content), b"")
        assert bytes(buffer) == content
        assert read_summed(descriptor, memoryview(buffer), 4, threads, 3) == (crc32c(content), b"")
        assert read_summed(longer, memoryview(buffer), 4, threads, 3) == (crc32c(content), b"tai")
        assert read_summed(longer, memoryview(buffer), 4, threads, 9) == (crc32c(content), b"tail")
        if size:
            assert read_summed(descriptor, memoryview(buffer), 5, threads) is None
    finally:
        os.close(descriptor)
        os.close(longer)


def test_many_readers_read_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces where few read, since they stay in the cache; one call where many would fight for the lock."""
    content = np.random.default_rng(0).bytes(3 * PIECE)
    file = tmp_path / "f"
    file.write_bytes(content)
    sizes: list[int] = []
    together: list[bool] = []
    original, gate = os.preadv, threading.Barrier(4, timeout=30)

    def seen(descriptor: int, parts: list[memoryview], offset: int) -> int:
        if not offset and together:
            gate.wait()
        sizes.append(len(parts[0]))
        return original(descriptor, parts, offset)

    monkeypatch.setattr(os, "preadv", seen)

    def read(_: int) -> tuple[int, bytes] | None:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            return read_summed(descriptor, memoryview(bytearray(len(content))), 0)
        finally:
            os.close(descriptor)

    assert read(0) == (crc32c(content), b"")
    assert sizes == [PIECE] * 3
    sizes.clear()
    together.append(True)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(read, range(4))) == {(crc32c(content), b"")}
    assert sizes.count(3 * PIECE) == 2
    assert sizes.count(PIECE) == 6
    assert summing._reading.count == 0


@pytest.mark.parametrize("threads", [None, 1, 2, 3])
def test_chunks_come_in_order(big: tuple[ActivationStore, np.ndarray], threads: int | None) -> None:
    store, wanted = big
    rows = store.rows("p")
    assert rows.n_chunks == 4
    seen = 0
    addresses = set()
    for start, values, scale in rows.chunks(threads=threads):
        assert (start, scale) == (seen, 1.0)
        np.testing.assert_array_equal(values, wanted[start : start + len(values)])
        addresses.add(values.ctypes.data)
        seen += len(values)
    assert seen == ROWS
    assert len(addresses) <= (threads or 2) + 1
    for k in range(4):
        np.testing.assert_array_equal(rows.chunk(k, threads=threads)[1], wanted[8192 * k : 8192 * (k + 1)])
    with pytest.raises(ValueError, match="threads must be at least 1"):
        rows.chunks(threads=0)
    with pytest.raises(ValueError, match="threads must be at least 1"):
        rows.chunk(0, threads=0)


def test_damage_is_found_by_every_thread(big: tuple[ActivationStore, np.ndarray]) -> None:
    store, _ = big
    file = store.path / "points/p/rows/c/1/0"
    sound = file.read_bytes()
    rows = store.rows("p")
    try:
        for at in (5, PIECE + 5, 4 * PIECE - 1, 4 * PIECE + 2):
            damaged = bytearray(sound)
            damaged[at] ^= 16
            file.write_bytes(damaged)
            for threads in (1, 2):
                with pytest.raises(DamagedChunkError, match=r"chunk 1 \(rows 8192 to 16383 of tokens 'p'"):
                    rows.chunk(1, threads=threads)
                with pytest.raises(DamagedChunkError, match="chunk 1"):
                    list(rows.chunks(threads=threads))
    finally:
        file.write_bytes(sound)


def test_an_error_of_a_helper_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(8 * PIECE))
    original = os.preadv

    def broken(descriptor: int, parts: list[memoryview], offset: int) -> int:
        if offset >= 3 * PIECE:
            raise OSError(5, "Input/output error")
        return original(descriptor, parts, offset)

    monkeypatch.setattr(os, "preadv", broken)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Input/output"):
            read_summed(descriptor, memoryview(bytearray(8 * PIECE)), 0, 2)
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_too(big: tuple[ActivationStore, np.ndarray]) -> None:
    store, _ = big
    rows = store.rows("p")
    rows.chunk(0, threads=2)
    child = os.fork()
    if child == 0:
        try:
            rows.chunk(1, threads=2)
        finally:
            os._exit(0 if summing._helpers.cache_info().currsize == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("profile", ["raw", "sharded"])
def test_an_empty_sample_inside_a_chunk_needs_no_chunk(tmp_path: Path, profile: Profile) -> None:
    lengths = np.array([3, 0, 6])
    plan = StorePlan(
        {"p": PointPlan(4, "tokens", lengths)},
        ["a", "b", "c"],
        chunk_bytes=32,
        profile=profile,
        shard_bytes=64,
    )
    rows = ActivationStore.create(tmp_path / "s.zarr", plan).rows("p")
    assert rows.sample(1).shape == (0, 4)
    assert rows.read(3, 3).shape == (0, 4)
    with pytest.raises(NotCommittedError):
        rows.read(2, 3)


@pytest.mark.parametrize("profile", ["raw", "sharded"])
def test_an_extent_is_where_the_rows_are(tmp_path, profile):
    shards = {"shard_bytes": 4 * 8 * 6 * 2} if profile == "sharded" else {}
    plan = StorePlan(
        {"a": PointPlan(6, "tokens", np.full(9, 5))},
        list("abcdefghi"),
        profile=profile,
        chunk_bytes=8 * 6 * 2,
        **shards,
    )
    with ActivationStore.create(tmp_path / "s.zarr", plan).writer() as writer:
        for i in range(9):
            writer.put(i, {"a": SampleRows(np.full((5, 6), i + 0.5))})
    rows = ActivationStore.open(tmp_path / "s.zarr").rows("a")
    for chunk in range(rows.n_chunks):
        extent = rows.extent(chunk)
        content = Path(extent.file).read_bytes()[extent.offset : extent.offset + extent.nbytes]
        found = np.frombuffer(content, np.float16).reshape(-1, 6)
        _, wanted, _ = rows.chunk(chunk)
        np.testing.assert_array_equal(found[: len(wanted)], wanted)
        assert extent.sums == (crc32c(content), crc32c(content))
    with pytest.raises(ValueError, match="chunk must be 0 to"):
        rows.extent(rows.n_chunks)
    file = Path(rows.extent(5).file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert ActivationStore.open(tmp_path / "s.zarr").rows("a").extent(5) is None
    file.unlink()
    assert ActivationStore.open(tmp_path / "s.zarr").rows("a").extent(5) is None


def test_compressed_chunks_have_no_extent(tmp_path):
    plan = StorePlan({"a": PointPlan(6, "tokens", [5])}, ["a"], profile="archive")
    with ActivationStore.create(tmp_path / "s.zarr", plan).writer() as writer:
        writer.put(0, {"a": SampleRows(np.ones((5, 6)))})
    rows = ActivationStore.open(tmp_path / "s.zarr").rows("a")
    assert not rows.plain
    assert rows.extent(0) is None
