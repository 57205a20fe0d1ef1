"""Writing to object stores: memory, and a local server that speaks S3; the same bytes as on a disk."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    StoreBusyError,
    StoreError,
    StorePlan,
    ahead,
    info,
    repair,
    verify,
)
from modegap.stores.plan import Profile
from modegap.stores.remote import RemotePath, place_of

fsspec = pytest.importorskip("fsspec")
PROFILES: list[Profile] = ["raw", "sharded", "archive"]


def few(n: int = 20, **options: Any) -> StorePlan:
    """A plan of fewer objects: every one is a request."""
    return small_plan(n, chunk_bytes=400, **options)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on a server of this machine."""
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    base = "memory://there" if request.param == "memory" else request.getfixturevalue("s3")
    yield f"{base}/s.zarr"
    place = place_of(base)
    assert isinstance(place, RemotePath)
    for name in place.sizes():
        place.joinpath(name).unlink()


def objects_of(url: str) -> dict[str, bytes]:
    place = place_of(url)
    assert isinstance(place, RemotePath)
    return place.read_many(list(place.sizes()))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_bytes_as_on_a_disk(url: str, tmp_path: Path, profile: Profile) -> None:
    plan = few(6, profile=profile)
    local = make_store(tmp_path / "s.zarr", plan)
    store = ActivationStore.create(url, plan)
    with store.writer(depth=8) as writer:
        fill(writer, plan)
    assert objects_of(url) == files_of(local.path)
    opened = ActivationStore.open(url)
    assert verify(opened, threads=8).ok
    assert opened.content_hash() == local.content_hash()
    assert opened.labels == local.labels
    assert info(opened).bytes_on_disk == info(local).bytes_on_disk
    np.testing.assert_array_equal(opened.rows("wide").read(2, 9), local.rows("wide").read(2, 9))
    with pytest.raises(StoreError, match="exists already"):
        ActivationStore.create(url, plan)
    with pytest.raises(StoreError, match="made with another plan"):
        ActivationStore.create(url, few(8), exist_ok=True)


def test_interrupted_writers_resume(url: str, tmp_path: Path) -> None:
    plan = small_plan()
    local = make_store(tmp_path / "s.zarr", plan)
    store = ActivationStore.create(url, plan)
    place = store.path
    assert isinstance(place, RemotePath)
    with store.writer(0, 12) as writer:
        fill(writer, plan, range(11))
    done = objects_of(url)
    assert 0 < ActivationStore.open(url).n_complete < 20
    # A killed writer leaves chunks that are not committed; a lost one has a record and no object.
    (place / "points/wide/rows/c/1/0").write_bytes(b"cut short")
    (place / "_commit/points/wide/rows/1.json").unlink(missing_ok=True)
    (place / "points/wide/rows/c/0/0").unlink()
    again = ActivationStore.create(url, plan, exist_ok=True)
    with again.writer(0, 12) as first, again.writer(12, 20) as second:
        assert ("points/wide/rows", 0) in first.withdrawn
        fill(first, plan)
        fill(second, plan)
    again.refresh()
    assert again.n_complete == 20
    finished = objects_of(url)
    assert finished == files_of(local.path)
    assert done.items() <= finished.items()


def test_ranges_are_claimed(url: str) -> None:
    plan = few()
    store = ActivationStore.create(url, plan)
    with store.writer(5, 12):
        for first, last in [(5, 12), (0, 6), (11, 20), (0, 20)]:
            with pytest.raises(StoreBusyError, match=f"written by process {os.getpid()}"):
                store.writer(first, last)
        store.writer(0, 5).close()
    store.writer().close()
    place = store.path
    assert isinstance(place, RemotePath)
    owner = {"first": 0, "last": 20, "host": "elsewhere", "pid": 1, "started": "x"}
    (place / "_owner/0-20-a.json").write_bytes(json.dumps(owner).encode())
    with pytest.raises(StoreBusyError, match="on elsewhere: wait for it, or if it is gone delete"):
        store.writer(3, 4)
    (place / "_owner/0-20-a.json").write_bytes(b'{"pid": "?"}')
    with pytest.raises(StoreBusyError, match="is damaged: delete it"):
        store.writer(3, 4)
    # One of this host whose process is gone is taken over.
    import socket

    owner |= {"host": socket.gethostname(), "pid": 2**22 + 1}
    (place / "_owner/0-20-a.json").write_bytes(json.dumps(owner).encode())
    store.writer(3, 4).close()
    assert not [name for name in place.sizes() if name.startswith("_owner/")]


def test_of_many_claims_at_once_no_two_overlap(url: str) -> None:
    store = ActivationStore.create(url, few())
    won: list[Any] = []
    barrier = threading.Barrier(6)

    def attempt(first: int) -> None:
        opened = ActivationStore.open(url, "r+")
        barrier.wait()
        with contextlib.suppress(StoreBusyError):
            won.append((first, opened.writer(first, first + 10)))

    threads = [threading.Thread(target=attempt, args=(2 * k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    firsts = sorted(first for first, _ in won)
    assert all(b - a >= 10 for a, b in pairwise(firsts))
    for _, writer in won:
        writer.close()
    store.writer().close()


def test_a_committed_chunk_is_refused_to_a_second_writer(url: str) -> None:
    plan = small_plan()
    store = ActivationStore.create(url, plan)
    place = store.path
    assert isinstance(place, RemotePath)
    writer = store.writer()
    (place / "_commit/pooled/encoder_output/rows/0.json").write_bytes(b"{}")
    with pytest.raises(StoreBusyError, match="is already committed by another writer"), writer:
        fill(writer, plan)
    store = ActivationStore.open(url, "r+")
    assert repair(store).restored[0].point == "encoder_output"
    writer = store.writer()
    late = next(a for a in store.arrays if a.spec.path == "points/wide/rows")
    last = late.spec.n_chunks - 1
    late.spec.chunk_file(place, last).write_bytes(b"another writer's")
    with pytest.raises(StoreBusyError, match="has just been written by another writer"), writer:
        fill(writer, plan)


def test_damage_is_repaired(url: str, tmp_path: Path) -> None:
    plan = small_plan(8)
    wanted = files_of(make_store(tmp_path / "s.zarr", plan).path)
    store = ActivationStore.create(url, plan)
    with store.writer() as writer:
        fill(writer, plan)
    place = store.path
    assert isinstance(place, RemotePath)
    name = "points/llm_final/rows/c/1/0"
    (place / name).write_bytes(bytes([wanted[name][0] ^ 1]) + wanted[name][1:])
    (place / "points/wide/rows/zarr.json").write_bytes(b"{")
    opened = ActivationStore.open(url, "r+")
    with pytest.raises(DamagedChunkError, match="llm_final"):
        opened.rows("llm_final").chunk(1)
    report = repair(opened)
    assert [d.point for d in report.restored] == ["points/wide/rows/zarr.json"]
    assert [(d.point, d.chunk) for d in report.withdrawn] == [("llm_final", 1)]
    with opened.writer() as writer:
        fill(writer, plan)
    assert objects_of(url) == wanted


def test_two_processes_create_one_store(url: str) -> None:
    """One with another plan that comes in between is told so; one with the same plan completes it."""
    plan, other = few(4), few(6)
    ActivationStore.create(url, plan)
    place = place_of(url)
    assert isinstance(place, RemotePath)
    (place / "zarr.json").unlink()
    (place / "samples/id/zarr.json").unlink()
    with pytest.raises(StoreError, match="a store of another plan is being made"):
        ActivationStore.create(url, other)
    store = ActivationStore.create(url, plan)
    with store.writer() as writer:
        fill(writer, plan)
    assert verify(ActivationStore.open(url)).ok
    (place.joinpath("x")).write_bytes(b"1")
    with pytest.raises(StoreError, match="exists already"):
        ActivationStore.create(url, plan)


def test_a_store_that_goes_away(url: str) -> None:
    plan = small_plan(8)
    store = ActivationStore.create(url, plan)
    with store.writer() as writer:
        fill(writer, plan)
    opened = ActivationStore.open(url)
    rows = opened.rows("llm_final")
    rows.chunk(0)
    place = store.path
    assert isinstance(place, RemotePath)
    for name in place.sizes():
        (place / name).unlink()
    with pytest.raises(StoreError, match="has been deleted or moved while it was in use"):
        rows.chunk(1)
    with pytest.raises(StoreError, match="no store at"):
        ActivationStore.open(url)


def test_a_server_that_stops_answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not damage: nothing is withdrawn for it."""
    plan = small_plan(8)
    store = ActivationStore.create("memory://there/s.zarr", plan)
    place = store.path
    assert isinstance(place, RemotePath)

    def broken(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    try:
        with store.writer() as writer:
            fill(writer, plan)
        with monkeypatch.context() as patch:
            patch.setattr(place.system, "cat_ranges", broken)
            with pytest.raises(StoreError, match=r"cannot read .*no answer.*try again"):
                store.rows("llm_final").chunk(1)
            with pytest.raises(StoreError, match="try again"):
                verify(store)
        other = ActivationStore.create("memory://there/t.zarr", plan)
        with monkeypatch.context() as patch:
            writer = other.writer()
            patch.setattr(type(place.system), "pipe_file", broken)
            with pytest.raises(StoreError, match=r"cannot write .*no answer.*check the connection"), writer:
                fill(writer, plan)
        with ActivationStore.open("memory://there/t.zarr", "r+").writer() as writer:
            fill(writer, plan)
        assert verify(other).ok
    finally:
        place.system.rm("/there", recursive=True)


class Slow:
    """Counts the requests that are under way at the same time; each takes a while."""

    def __init__(self, system: Any, seconds: float) -> None:
        self.system, self.seconds = system, seconds
        self.original = system.cat_ranges
        self.now = self.most = self.requests = 0
        self.lock = threading.Lock()

    def __call__(self, *given: Any, **more: Any) -> Any:
        with self.lock:
            self.now, self.requests = self.now + 1, self.requests + 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        try:
            return self.original(*given, **more)
        finally:
            with self.lock:
                self.now -= 1


@pytest.mark.parametrize("profile", ["raw", "sharded"])
def test_reading_in_order_hides_the_latency(monkeypatch: pytest.MonkeyPatch, profile: Profile) -> None:
    plan = small_plan(40, profile=profile)
    store = ActivationStore.create("memory://there/s.zarr", plan)
    place = store.path
    assert isinstance(place, RemotePath)
    seconds = 0.02
    try:
        with store.writer() as writer:
            fill(writer, plan)

        def run(most: int) -> tuple[float, int, bytes]:
            monkeypatch.setattr(ahead, "MOST", most)
            opened = ActivationStore.open("memory://there/s.zarr")
            rows = opened.rows("wide")
            assert rows.n_chunks > 30
            [rows.scale(k) for k in range(rows.n_chunks)]
            slow = Slow(place.system, seconds)
            with monkeypatch.context() as patch:
                patch.setattr(place.system, "cat_ranges", slow)
                begin = time.perf_counter()
                content = b"".join(rows.chunk(k)[1].tobytes() for k in range(rows.n_chunks))
                return time.perf_counter() - begin, slow.most, content

        monkeypatch.setattr(ahead.ReadAhead, "_plan", ahead.ReadAhead._plan)
        ahead_time, at_once, content = run(16)
        with monkeypatch.context() as patch:
            patch.setattr(ahead.ReadAhead, "_plan", lambda self, block, *, follows: None)
            plain_time, one, wanted = run(16)
        print(f"{profile}: {plain_time:.2f} s one after another, {ahead_time:.2f} s ahead, {at_once} at once")
        assert content == wanted
        assert one == 1
        assert 4 <= at_once <= 18
        assert plain_time > 30 * seconds
        assert ahead_time < plain_time / 2
    finally:
        place.system.rm("/there", recursive=True)


def test_reading_ahead_follows_the_reader() -> None:
    """A lone block or a jump asks for nothing more; order of threads does not matter; errors arrive."""
    asked: list[int] = []
    lock = threading.Lock()

    def fetch(block: int, content: memoryview) -> str | None:
        with lock:
            asked.append(block)
        content[:] = bytes([block]) * len(content)
        return "broken" if block == 30 else None

    reader = ahead.ReadAhead(fetch, 4, lambda block: block < 40)
    content = memoryview(bytearray(4))

    def read(block: int) -> str | None:
        reason = reader.read(block, content)
        assert bytes(content) == bytes([block]) * 4
        return reason

    assert read(0) is None
    assert read(17) is None
    assert sorted(asked) == [0, 17]
    for block in (0, 1, 2, 3, 4, 6, 5, 7):
        assert read(block) is None
    for block in range(8, 40):
        assert read(block) == ("broken" if block == 30 else None)
    assert sorted(set(asked)) == list(range(40))
    assert len(asked) <= 44
    big = ahead.ReadAhead(fetch, 2**30, lambda block: True)
    assert big._most == 2


def test_a_killed_process_leaves_a_store_that_goes_on(s3: str, tmp_path: Path) -> None:
    """A process of its own writes to the server and is killed."""
    url, plan = f"{s3}/killed.zarr", few(40)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from store_material import fill, small_plan\n"
        "from modegap.stores import ActivationStore\n"
        "plan = small_plan(40, chunk_bytes=400)\n"
        "store = ActivationStore.create(sys.argv[1], plan, exist_ok=True)\n"
        "with store.writer() as writer:\n"
        "    print('writing', flush=True)\n"
        "    fill(writer, plan)\n"
    )
    command = [sys.executable, "-c", code, url, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        place = place_of(f"{url}/_commit/points/wide/rows")
        assert isinstance(place, RemotePath)
        while len(place.names()) < 5:
            time.sleep(0.02)
        child.kill()
    opened = ActivationStore.open(url, "r+")
    assert verify(opened).ok
    assert opened.n_complete < 40
    with opened.writer() as writer:
        fill(writer, plan)
    assert objects_of(url) == files_of(make_store(tmp_path / "whole.zarr", plan).path)
