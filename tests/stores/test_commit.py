"""The commit protocol: order, exclusivity, ownership, and what a crash at any step leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import (
    ActivationStore,
    NotCommittedError,
    PointPlan,
    SampleRows,
    StoreBusyError,
    StoreError,
    StorePlan,
    durable,
    publishing,
    verify,
)
from modegap.stores.commits import CommitLog, CommitRecord


class Crash(BaseException):
    """Stands for the process ending at once."""


STEPS = ("write", "pwrite", "fsync", "replace", "rename", "link", "unlink")


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """Make the `step`-th call of a disk operation, and all after it, raise `Crash`; return a counter."""
    seen = 0

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen > step:
                raise Crash
            return original(*args, **kwargs)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return lambda: seen


def test_a_crash_at_every_step_resumes_to_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = PointPlan(4, "both", np.array([3, 0, 4]), stream="llm")
    plan = StorePlan({"p": point}, ["a", "b", "c"], chunk_bytes=24)
    whole = make_store(tmp_path / "whole.zarr", plan)
    wanted = files_of(whole.path)
    empty = ActivationStore.create(tmp_path / "empty.zarr", plan)
    step = 0
    while True:
        path = tmp_path / "crashed.zarr"
        shutil.copytree(empty.path, path)
        with monkeypatch.context() as patch:
            calls = crash_at(patch, step)
            try:
                with ActivationStore.open(path, "r+").writer(depth=1) as writer:
                    fill(writer, plan)
                ended = calls() <= step
            except Crash:
                ended = False
        reader = ActivationStore.open(path)
        assert verify(reader, threads=1).ok
        # The claim of this very process looks alive, as it would not had the process really ended.
        shutil.rmtree(path / "_owner", ignore_errors=True)
        committed = {name: data for name, data in files_of(path).items() if name.startswith("_commit")}
        with ActivationStore.open(path, "r+").writer() as writer:
            assert not writer.withdrawn
            fill(writer, plan)
        found = files_of(path)
        assert found == wanted
        assert all(found.get(name, data) == data for name, data in committed.items())
        shutil.rmtree(path)
        if ended:
            break
        step += 1
    assert step > 60


def test_the_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syncs: None) -> None:
    plan = small_plan(2, chunk_bytes=10_000)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    log: list[tuple[str, str]] = []

    def spy(name: str) -> None:
        original = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            target = args[-1] if name != "fsync" else Path(f"/proc/self/fd/{args[0]}").resolve()
            log.append((name, str(target)))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "rename", "link"):
        spy(name)
    with store.writer(depth=1) as writer:
        fill(writer, plan)
    rows = store.path / "points/wide/rows/c/0"
    record = store.path / "_commit/points/wide/rows"
    steps = [(name, target) for name, target in log if target.startswith((str(rows), str(record)))]
    kinds = ["commit" if target.startswith(str(record)) else "chunk" for _, target in steps]
    assert [name for name, _ in steps if name != "rename"] == [
        "fsync",
        "fsync",
        "replace",
        "fsync",
        "link",
        "fsync",
    ]
    # The record is prepared early, but linked to its name only once the chunk's name is on the disk.
    assert kinds == ["chunk", "commit", "chunk", "chunk", "commit", "commit"]
    assert steps[0][1].endswith(".tmp")
    assert steps[1][1].endswith(".tmp")
    assert steps[2][1] == str(rows / "0")
    assert steps[3][1] == str(rows)
    assert steps[4][1] == str(record / "0.json")
    assert steps[5][1] == str(record)
    parents = [target for name, target in log if name == "fsync"]
    assert parents.index(str(rows.parent)) < parents.index(str(record))


def test_chunks_that_wait_together_share_the_syncs_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = StorePlan({"p": PointPlan(4, "pooled")}, [str(i) for i in range(8)], chunk_bytes=8)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    folders: list[str] = []
    everyone_waits = threading.Barrier(4)
    original = durable.sync_folder

    def sync(folder: Path) -> None:
        folders.append(folder.relative_to(store.path).as_posix())
        original(folder)

    def stage(self: CommitLog, chunk: int, record: CommitRecord) -> Path:
        staged = original_stage(self, chunk, record)
        everyone_waits.wait(10)
        return staged

    original_stage = CommitLog.stage
    monkeypatch.setattr(publishing, "sync_folder", sync)
    monkeypatch.setattr(CommitLog, "stage", stage)
    with store.writer(depth=4) as writer:
        for sample in range(8):
            writer.put(sample, {"p": SampleRows(pooled=np.full(4, sample, np.float16))})
    assert verify(store).ok
    assert store.n_complete == 8
    assert sorted(name for name in folders if name.count("/") == 4) == [
        f"pooled/p/rows/c/{k}" for k in range(8)
    ]
    assert 1 <= folders.count("_commit/pooled/p/rows") == folders.count("pooled/p/rows/c") <= 8


@pytest.mark.parametrize("failing", ["link", "sync"])
def test_a_failure_in_a_group_stays_with_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        link = os.link
        if failing == "link":
            patch.setattr(os, "link", lambda new, path: broken() if "/llm/" in str(path) else link(new, path))
        else:
            patch.setattr(publishing, "sync_folder", broken)
        with pytest.raises(StoreError, match="check the disk, then resume"), store.writer() as writer:
            fill(writer, plan)
    assert not list(store.path.rglob("*.tmp"))
    reader = ActivationStore.open(store.path, "r+")
    assert verify(reader).ok
    assert reader.n_complete < 20
    with reader.writer() as writer:
        fill(writer, plan)
    assert files_of(store.path) == files_of(make_store(tmp_path / "whole.zarr", plan).path)


def test_a_committed_chunk_is_refused_to_a_second_writer(tmp_path: Path) -> None:
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    writer = store.writer()
    record = store.path / "_commit/pooled/encoder_output/rows/0.json"
    record.write_text("{}")
    with pytest.raises(StoreBusyError, match="chunk 0 of pooled/encoder_output/rows is already committed"):  # noqa: PT012
        fill(writer, plan)
        writer.close()
    assert record.read_text() == "{}"


def test_an_owned_range_is_refused(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path / "s.zarr", small_plan())
    with store.writer(5, 12):
        for first, last in [(5, 12), (0, 6), (11, 20), (6, 7), (0, 20)]:
            with pytest.raises(StoreBusyError, match=f"written by process {os.getpid()}"):
                store.writer(first, last)
        store.writer(0, 5).close()
        store.writer(12, 20).close()
    store.writer(5, 12).close()
    assert not (store.path / "_owner").exists()


def test_a_dead_owner_is_replaced_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path / "s.zarr", small_plan())
    code = (
        "import os, sys; from modegap.stores import ActivationStore; "
        "writer = ActivationStore.open(sys.argv[1], 'r+').writer(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=False)
    record = store.path / "_owner/0-20.json"
    owner = json.loads(record.read_text())
    store.writer().close()
    (store.path / "_owner").mkdir()
    # A reused process number: alive, but started at another time.
    record.write_text(json.dumps({**owner, "pid": os.getpid()}))
    store.writer().close()
    (store.path / "_owner").mkdir()
    record.write_text(json.dumps({**owner, "host": "elsewhere"}))
    with pytest.raises(StoreBusyError, match="on elsewhere: wait for it, or if it is gone delete"):
        store.writer()
    record.write_text("{")
    with pytest.raises(StoreBusyError, match="is damaged: delete it"):
        store.writer()


def test_a_writer_that_is_forgotten_gives_its_samples_back(tmp_path: Path) -> None:
    store = ActivationStore.create(tmp_path / "s.zarr", small_plan())
    writer = store.writer()
    del writer
    store.writer().close()


def test_readers_see_complete_samples_only(tmp_path: Path) -> None:
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with pytest.raises(NotCommittedError, match=r"sample 'sample-000-é' is incomplete \(0 of 20"):
        store.rows("llm_final").read(0, 1)
    with store.writer() as writer:
        fill(writer, plan, range(11))
    complete = store.complete_samples()
    n = int(np.argmin(complete))
    assert 0 < n < 11
    # A sample without token rows may be complete before one that has them.
    assert n <= store.n_complete == complete.sum() <= 11
    rows = ActivationStore.open(store.path).rows("llm_final")
    assert rows.n_valid_rows == rows.sample_range(n)[0]
    assert rows.committed.sum() < rows.n_chunks
    rows.read(0, rows.n_valid_rows)
    with pytest.raises(NotCommittedError, match=f"sample-{n:03d}"):
        rows.read(0, rows.n_valid_rows + 1)
    seen = 0
    for k in range(rows.n_chunks):
        try:
            start, values, _ = rows.chunk(k)
        except NotCommittedError:
            break
        assert start == seen
        seen += len(values)
    assert seen == rows.n_valid_rows


def test_shape_is_never_trusted(tmp_path: Path) -> None:
    plan = small_plan()
    store = make_store(tmp_path / "s.zarr", plan)
    (store.path / "_commit/points/llm_final/rows/0.json").unlink()
    opened = ActivationStore.open(store.path)
    assert not opened.complete_samples()[0]
    with pytest.raises(NotCommittedError):
        opened.rows("llm_final").read(0, 1)


def test_resume_goes_on_at_the_first_sample_that_is_not_durable(tmp_path: Path) -> None:
    plan = small_plan()
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    for stop in (3, 9, 15):
        with store.writer() as writer:
            assert writer.resume_from == np.argmin(store.complete_samples())
            fill(writer, plan, [i for i in writer.todo.tolist() if i < stop])
    with store.writer() as writer:
        assert writer.put(0, {}) is False
        fill(writer, plan)
        assert writer.resume_from == writer.stop == 20
    with store.writer() as writer:
        assert writer.todo.size == 0
        assert writer.put(7, {}) is False
    assert store.content_hash() == whole.content_hash()
    assert files_of(store.path) == files_of(whole.path)


def test_resume_makes_missing_and_short_chunks_again(tmp_path: Path) -> None:
    plan = small_plan()
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = make_store(tmp_path / "s.zarr", plan)
    (store.path / "points/wide/rows/c/1/0").unlink()
    short = store.path / "tokens/llm/ids/c/2"
    short.write_bytes(short.read_bytes()[:-1])
    (store.path / "points/wide/rows/c/1/.0.0123456789ab.tmp").write_bytes(b"x")
    (store.path / "_commit/tokens/llm/ids/.2.json.0123456789ab.tmp").write_bytes(b"x")
    with ActivationStore.open(store.path, "r+").writer() as writer:
        assert sorted(writer.withdrawn) == [("points/wide/rows", 1), ("tokens/llm/ids", 2)]
        assert 0 < len(writer.todo) < 20
        fill(writer, plan)
    assert files_of(store.path) == files_of(whole.path)


def test_put_in_order_once_and_while_open(tmp_path: Path) -> None:
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        fill(writer, plan, [0])
        with pytest.raises(ValueError, match=r"sample 0 .* was put already: expected"):
            fill(writer, plan, [0])
        with pytest.raises(ValueError, match=r"sample 9 .* came too early: expected"):
            fill(writer, plan, [9])
        with pytest.raises(ValueError, match="0 to 19"):
            writer.put(20, {})
    with pytest.raises(StoreError, match="closed"):
        fill(writer, plan, [1])
    with pytest.raises(ValueError, match="empty or outside"):
        store.writer(4, 4)
    with pytest.raises(ValueError, match="depth"):
        store.writer(depth=0)
    with pytest.raises(StoreError, match="mode='r\\+'"):
        ActivationStore.open(store.path).writer()


def test_the_writer_keeps_few_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk for each array and those on their way, however many samples are put."""
    from modegap.stores import committer

    made = []
    original = committer.aligned_empty
    monkeypatch.setattr(committer, "aligned_empty", lambda n: made.append(n) or original(n))
    plan = small_plan(200)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer(depth=2) as writer:
        fill(writer, plan)
    chunks = sum(int(store.commits(array).committed.sum()) for array in store.arrays)
    assert chunks > 300
    sizes = np.unique(made)
    # Buffers of one size are shared, so the bound is per size: arrays of that size plus those on their way.
    assert len(made) <= len(store.arrays) + 2 * len(sizes) + 2
