"""Workers that are killed and schedulers that go away cost time, not results."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster_material import SlowMoments, importable, make_store

from modegap.engine.cluster import Cluster, connect, reduce_on
from modegap.engine.cluster.calls import worker_name
from modegap.engine.cluster.session import Task
from modegap.engine.errors import EngineError
from modegap.engine.moments import Moments, MomentsResult
from modegap.engine.reduce import reduce
from modegap.stores import ActivationStore

SMALL = 32 << 10


def spread(cluster: Cluster, store: ActivationStore, **options: object) -> MomentsResult:
    made = SlowMoments(block_rows=64)
    found: MomentsResult = reduce_on(
        cluster, [store], ["adapter_output"], made, shard_bytes=SMALL, **options
    ).finalize()  # type: ignore[arg-type]
    return found


def pids(cluster: Cluster) -> list[int]:
    return [one["pid"] for one in cluster.facts().values()]


def kill_one(cluster: Cluster, seed: int, seconds: float) -> threading.Thread:
    """Kill a random worker after a random time."""
    rng = np.random.default_rng(seed)
    alive = pids(cluster)

    def strike() -> None:
        time.sleep(rng.uniform(0, seconds))
        os.kill(alive[int(rng.integers(len(alive)))], signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def check_kills(seeds: range, store: ActivationStore, folder: Path | None) -> None:
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    with connect("local:2", folder) as cluster:
        begin = time.monotonic()
        calm = spread(cluster, store)
        seconds = time.monotonic() - begin
        for seed in seeds:
            strike = kill_one(cluster, seed, seconds)
            found = spread(cluster, store)
            strike.join()
            assert torch.equal(found.covariance, calm.covariance)
            assert torch.equal(found.mean, calm.mean)
            assert found.count == one.count
    gap = (calm.covariance - one.covariance).abs().max() / one.covariance.abs().max()
    assert gap < 1e-10


def test_killed_workers_cost_no_bit(store: ActivationStore) -> None:
    check_kills(range(3), store, None)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_twenty_killed_workers_cost_no_bit(kept: bool, store: ActivationStore, tmp_path: Path) -> None:
    check_kills(range(100, 120), store, tmp_path if kept else None)


def test_a_killed_worker_costs_only_its_task(tmp_path: Path) -> None:
    """With a run folder what others have written stays: few shards are read a second time."""
    store = make_store(tmp_path / "a.zarr", samples=20)
    folder = tmp_path / "run"
    with connect("local:2", folder) as cluster:
        begun = threading.Event()

        def strike() -> None:
            begun.wait(60)
            os.kill(pids(cluster)[0], signal.SIGKILL)

        thread = threading.Thread(target=strike)
        thread.start()
        leaves: list[int] = []

        def progress(done: int, total: int, nbytes: int) -> None:
            leaves.append(done)
            if done > total // 2:
                begun.set()

        found = spread(cluster, store, progress=progress)
        thread.join()
    rows = store.rows("adapter_output").n_valid_rows
    assert leaves == sorted(leaves)
    assert leaves[-1] == rows, "a shard was counted twice"
    assert found.count == rows


def test_a_task_that_kills_its_workers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask
    import distributed  # its defaults are in the configuration before one is changed and put back

    assert distributed
    monkeypatch.setattr("modegap.engine.cluster.session._TRIES", 1)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), connect("local:1") as cluster:
        cluster.ready()
        task = Task(_suicide, (), need=10**9, what="rows 0 to 9 of x")
        with pytest.raises(EngineError, match=r"rows 0 to 9 of x: workers kept dying.*1\.00 GB"):
            cluster.run(lambda: {"a": task}, lambda graph: ["a"])


_suicide = os.abort


@contextmanager
def started(*words: str, path: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]
    env = {**importable(), "DASK_LOGGING__DISTRIBUTED": "error", "OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_scheduler_that_comes_back(store: ActivationStore, tmp_path: Path) -> None:
    """The same address, other processes: the client waits, and goes on from the files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
    halfway = threading.Event()
    seen: list[int] = []
    found: list[MomentsResult] = []
    rows = store.rows("adapter_output").n_valid_rows

    def progress(done: int, total: int, nbytes: int) -> None:
        seen.append(done)
        if done > total // 3:
            halfway.set()

    def work() -> None:
        with connect(address, tmp_path) as cluster:
            found.append(spread(cluster, store, progress=progress))

    thread = threading.Thread(target=work)
    with started(*scheduler) as first, started(*worker):
        thread.start()
        assert halfway.wait(60)
        first.kill()
        first.wait()
    before = seen[-1]
    with started(*scheduler), started(*worker):
        thread.join(120)
    assert not thread.is_alive()
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    assert (found[0].covariance - one.covariance).abs().max() <= 1e-10 * one.covariance.abs().max()
    assert found[0].count == rows
    resumed = seen[seen.index(before) + 1]
    assert resumed >= rows // 4, "what was done before the scheduler went away was done again"


@pytest.mark.slow
def test_workers_need_not_be_alike(tmp_path: Path) -> None:
    """A task that a small worker cannot hold goes to a large one."""
    file = tmp_path / "scheduler.json"
    with started(
        "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
    ):
        while not (file.exists() and file.read_text().endswith("}")):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        common = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit")
        with started(*common, "600MB"), started(*common, "8GB"), connect(address) as cluster:
            while len(cluster.workers()) < 2:
                time.sleep(0.1)
            limits = {name: one["memory_limit"] for name, one in cluster.workers().items()}
            (large,) = (name for name, limit in limits.items() if limit > 10**9)
            tasks = {f"t{i}": Task(worker_name, (), need=2 * 10**9) for i in range(4)}
            ran = cluster.run(lambda: tasks, list)
    assert {name.partition(" ")[0] for name in ran} == {large}


def test_nobody_answers() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modegap.engine.cluster.session._FIRST", 0.5)
        with pytest.raises(EngineError, match=r"no scheduler answers.*start one with `dask scheduler`"):
            connect("tcp://127.0.0.1:9")


def test_a_port_where_something_else_listens() -> None:
    """A dashboard's, say: Dask's client waits for its answer for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("modegap.engine.cluster.session._FIRST", 0.5)
        with pytest.raises(EngineError, match="what listens there is no scheduler"):
            connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("worker", "a worker cannot import modegap"),
        ("scheduler", "the scheduler cannot read the tasks: install"),
    ],
)
def test_processes_without_modegap(
    without: str, message: str, store: ActivationStore, tmp_path: Path
) -> None:
    (tmp_path / "modegap").mkdir()
    (tmp_path / "modegap/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'modegap'\")")
    paths = {kind: tmp_path if kind == without else None for kind in ("scheduler", "worker")}
    file = tmp_path / "scheduler.json"
    words = (
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    )
    with started(*words, path=paths["scheduler"]):
        while not (file.exists() and file.read_text().endswith("}")):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        worker = started("worker", address, "--no-nanny", "--no-dashboard", path=paths["worker"])
        with worker, connect(address) as cluster, pytest.raises(EngineError, match=message):
            reduce(store, "adapter_output", Moments(), cluster=cluster)
