"""Large rows are written while they are checked: what is refused, cut off or torn leaves nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_material import files_of

from modegap.stores import (
    ActivationStore,
    PointPlan,
    SampleRows,
    StoreError,
    StorePlan,
    committer,
    filling,
    objects,
    runs,
    verify,
    writer,
)
from modegap.stores.plan import Profile

WIDTH = 512
LENGTHS = np.array([700, 1, 300, 0, 1100, 520, 64, 3, 900, 513])
SHARE, PIECE, DIRECT = writer._WORTH_SHARING, runs.PIECE, filling.DIRECT


def plan(profile: Profile = "raw") -> StorePlan:
    """Two points of one stream with pooled rows, chunks that samples cross."""
    points = {
        "a": PointPlan(WIDTH, "both", LENGTHS, stream="s"),
        "b": PointPlan(2 * WIDTH, "tokens", LENGTHS, stream="s", dtype="float32"),
    }
    ids = [f"n{i}" for i in range(len(LENGTHS))]
    return StorePlan(points, ids, chunk_bytes=2**20, profile=profile, shard_bytes=2**22)


def given(sample: int) -> dict[str, SampleRows]:
    """Rows of a sample; those of sample 6 are float32 for the float16 point, and too large for it."""
    drawn = np.random.default_rng(sample)
    length = int(LENGTHS[sample])
    one = drawn.standard_normal((length, WIDTH), dtype=np.float32)
    one = one * np.float32(1e5) if sample == 6 else one.astype(np.float16)
    other = drawn.standard_normal((length, 2 * WIDTH), dtype=np.float32)
    return {"a": SampleRows(one, drawn.standard_normal(WIDTH)), "b": SampleRows(other)}


@pytest.fixture(params=["alone", "beside"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One core, or one to spare."""
    monkeypatch.setattr(writer, "default_threads", lambda: 1 + (request.param == "beside"))
    monkeypatch.setattr(filling, "DIRECT", 2**17)
    monkeypatch.setattr(runs, "PIECE", 2**16)
    monkeypatch.setattr(writer, "_WORTH_SHARING", 2**18)
    return str(request.param)


def buffered(path: Path, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> ActivationStore:
    """The store as it is when everything goes through the buffers."""
    with monkeypatch.context() as patch:
        patch.setattr(filling, "DIRECT", 2**40)
        return written(path, profile)


def written(path: Path, profile: Profile = "raw") -> ActivationStore:
    store = ActivationStore.create(path, plan(profile))
    with store.writer() as at_work:
        for sample in range(len(LENGTHS)):
            at_work.put(sample, given(sample))
    return store


@pytest.mark.parametrize("profile", ["raw", "sharded", "archive"])
def test_the_same_bytes_as_through_the_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, profile: Profile
) -> None:
    direct: list[int] = []
    original = filling.Filling.write
    monkeypatch.setattr(
        filling.Filling,
        "write",
        lambda self, run, *, look: direct.append(len(run.rows)) or original(self, run, look=look),
    )
    store = written(tmp_path / "s.zarr", profile)
    assert bool(sum(direct) > LENGTHS.sum()) is (profile != "archive")
    assert verify(store).ok
    assert store.n_complete == len(LENGTHS)
    assert files_of(store.path) == files_of(buffered(tmp_path / "t.zarr", profile, monkeypatch).path)


def test_the_sizes_that_a_user_meets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a 7B model as they come: some of a megabyte and more, some of less, in chunks of 16 MiB."""
    for module, name, value in (
        (filling, "DIRECT", DIRECT),
        (runs, "PIECE", PIECE),
        (writer, "_WORTH_SHARING", SHARE),
    ):
        monkeypatch.setattr(module, name, value)
    lengths = np.array([576, 100, 1300, 20, 900, 576])
    rows = np.random.default_rng(0).standard_normal((2048, 4096), dtype=np.float32).astype(np.float16)

    def fill(path: Path) -> ActivationStore:
        store = ActivationStore.create(
            path, StorePlan({"p": PointPlan(4096, "tokens", lengths)}, [str(i) for i in range(6)])
        )
        with store.writer() as at_work:
            for sample, length in enumerate(lengths.tolist()):
                at_work.put(sample, {"p": SampleRows(rows[sample : sample + length])})
        return store

    store = fill(tmp_path / "s.zarr")
    monkeypatch.setattr(filling, "DIRECT", 2**40)
    assert files_of(store.path) == files_of(fill(tmp_path / "t.zarr").path)


@pytest.mark.parametrize("point", ["a", "b"])
@pytest.mark.parametrize("row", [0, 1, -1])
def test_a_sample_that_is_refused_leaves_nothing(tmp_path: Path, threads: str, point: str, row: int) -> None:
    """Part of it was written already; the right one takes its place."""
    store = ActivationStore.create(tmp_path / "s.zarr", plan())
    with store.writer() as at_work:
        for sample in range(len(LENGTHS)):
            if sample in (2, 4, 5):
                wrong = given(sample)
                values = wrong[point].tokens
                assert values is not None
                values[row, 7] = np.nan if row else -np.inf
                index = row % len(values)
                with pytest.raises(StoreError, match=f"tokens of '{point}': NaN or infinity in row {index};"):
                    at_work.put(sample, wrong)
                with pytest.raises(ValueError, match="expected float rows"):
                    at_work.put(sample, {**wrong, "b": SampleRows(np.zeros((3, 2)))})
            at_work.put(sample, given(sample))
    assert verify(store).ok
    assert files_of(store.path) == files_of(written(tmp_path / "t.zarr").path)


def test_a_writer_that_ends_early_leaves_no_draft(tmp_path: Path, threads: str) -> None:
    store = ActivationStore.create(tmp_path / "s.zarr", plan())
    with store.writer() as at_work:
        for sample in range(3):
            at_work.put(sample, given(sample))
        assert list(store.path.rglob("*.tmp"))
    assert not list(store.path.rglob("*.tmp"))
    with store.writer() as at_work:
        for sample in at_work.todo.tolist():
            at_work.put(sample, given(sample))
    assert files_of(store.path) == files_of(written(tmp_path / "t.zarr").path)


def test_a_disk_that_fails_while_rows_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    """It is said at once, and again by what follows; nobody looks at the caller's rows after that."""
    store = ActivationStore.create(tmp_path / "s.zarr", plan())

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    at_work = store.writer()
    at_work.put(0, given(0))
    wait(at_work._committer._pending)  # a chunk still on its way would meet the full disk before the rows do
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for sample in (1, 2, 2, 3):
            if sample == 1:
                at_work.put(sample, given(sample))
            else:
                with pytest.raises(StoreError, match=r"no space left for .* resume"):
                    at_work.put(sample, given(sample))
        with pytest.raises(StoreError, match="no space left"):
            at_work.close()
    assert not list(store.path.rglob("*.tmp"))
    with store.writer() as again:
        for sample in again.todo.tolist():
            again.put(sample, given(sample))
    assert files_of(store.path) == files_of(written(tmp_path / "t.zarr").path)


def test_the_rows_are_the_callers_again_when_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    """However late the other thread comes."""
    begun = threading.Event()
    original = runs.Survey.work

    def late(self: runs.Survey) -> None:
        if threading.current_thread() is not threading.main_thread():
            begun.wait(0.02)
        original(self)

    monkeypatch.setattr(runs.Survey, "work", late)
    store = ActivationStore.create(tmp_path / "s.zarr", plan())
    with store.writer() as at_work:
        for sample in range(len(LENGTHS)):
            rows = given(sample)
            at_work.put(sample, rows)
            for one in rows.values():
                if one.tokens is not None:
                    one.tokens[...] = np.nan
    assert files_of(store.path) == files_of(written(tmp_path / "t.zarr").path)


def test_work_beside_is_over_when_the_block_is_left() -> None:
    at_work = committer.Assistant()
    done: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(5)
        done.append(1)
        raise MemoryError

    def until_it_has_begun() -> None:
        with at_work.beside(work):
            assert begun.wait(10)
            threading.Timer(0.05, release.set).start()

    with pytest.raises(MemoryError):
        until_it_has_begun()
    assert done == [1]
    with pytest.raises(KeyError), at_work.beside(lambda: done.append(2)):
        raise KeyError
    at_work.finish()


@pytest.mark.parametrize("forgotten", [False, True])
def test_the_thread_beside_ends_with_its_work(forgotten: bool) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "modegap-look"]

    before = threads()
    at_work = committer.Assistant()
    assert threads() == before
    for _ in range(2):
        with at_work.beside(lambda: None):
            time.sleep(0.05)  # long enough for it to begin
    (mine,) = (thread for thread in threads() if thread not in before)
    if forgotten:
        del at_work
    else:
        at_work.finish()
    mine.join(10)
    assert not mine.is_alive()


@pytest.mark.parametrize("room", [0, 1, 64])
def test_descriptors_are_few_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: str, room: int
) -> None:
    """Whether the files of chunks stay open or have to be opened anew; also of a writer that is forgotten."""
    monkeypatch.setattr(objects, "KEPT_OPEN", room)

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def settled(most: int) -> int:
        """Their number once it is at most this: a thread may still be at a chunk's end, its file or folder open."""
        deadline = time.monotonic() + 10
        while (found := descriptors()) > most and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    store = ActivationStore.create(tmp_path / "s.zarr", plan())
    gc.collect()  # what earlier tests have left is not this one's
    before = descriptors()
    at_work = store.writer()
    for sample in range(3):
        at_work.put(sample, given(sample))
    kept = settled(before + room) - before
    assert kept <= room
    assert (kept > 0) is (room > 0)
    at_work.close()
    assert descriptors() == before
    at_work = store.writer()
    for sample in at_work.todo.tolist()[:3]:
        at_work.put(sample, given(sample))
    del at_work
    gc.collect()
    assert settled(before) == before
    with store.writer() as again:
        for sample in again.todo.tolist():
            again.put(sample, given(sample))
    assert files_of(store.path) == files_of(written(tmp_path / "t.zarr").path)
