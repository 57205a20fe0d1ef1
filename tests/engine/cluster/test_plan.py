"""What a cluster's run is planned to take, against small real runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cluster_material import make_store
from test_deaths import started

from modegap.cli import main
from modegap.engine.cluster import connect, plan_reduction, reduce_on
from modegap.engine.cluster.session import Cluster, Graph
from modegap.engine.moments import Moments
from modegap.engine.packing import Part
from modegap.engine.reduce import reduce


def test_a_thousand_shards_on_sixty_four_workers() -> None:
    plan = plan_reduction(1000 * 32768, 4096, workers=64, shards=1000, rate=0.1e9)
    assert plan.tasks == 2 * 1000
    assert plan.depth == 10
    assert plan.read_bytes == 1000 * 32768 * 4096 * 2
    assert plan.part_bytes == pytest.approx(8 * 4096**2, rel=0.03)
    assert plan.scheduler_share < 0.01
    assert plan.moved_bytes <= 999 * 2 * plan.part_bytes
    assert plan.parts_held < 20
    assert plan.seconds >= plan.read_bytes / 64 / 0.1e9
    assert plan.seconds < 1.4 * plan.read_bytes / 64 / 0.1e9
    assert plan.worker_limit > plan.worker_bytes >= 4 * plan.part_bytes


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 9), (7, 3), (64, 1), (5, 64)])
def test_every_shape_ends(shards: int, workers: int) -> None:
    plan = plan_reduction(shards * 100, 16, workers=workers, shards=shards, rate=0.1e9)
    assert plan.tasks == 2 * plan.shards
    assert plan.shards == shards
    assert plan.moved_bytes <= 2 * (shards - 1) * plan.part_bytes
    assert plan.moved_bytes == 0 or workers > 1
    assert plan.parts_held <= shards
    busy = shards * 100 * 32 / 0.1e9
    assert busy / workers <= plan.seconds <= busy + shards * 10 * plan.part_bytes / 1e9


def test_the_plan_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, bytes of a result and traffic of the scheduler, counted at its sockets."""
    store = make_store(tmp_path / "a.zarr", samples=60, width=64, longest=300)
    rows = store.rows("adapter_output").n_valid_rows
    graphs: list[Graph] = []
    run = Cluster.run

    def noted(self: Cluster, make: object, *rest: object) -> object:
        def made() -> Graph:
            graphs.append(make())  # type: ignore[operator]
            return graphs[-1]

        return run(self, made, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Cluster, "run", noted)
    file = tmp_path / "scheduler.json"
    where = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    with started("scheduler", *where):
        while not (file.exists() and file.read_text().endswith("}")):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        with started(*worker), started(*worker), connect(address) as cluster:
            reduce(store, "adapter_output", Moments(block_rows=32), cluster=cluster)  # imports
            graphs.clear()
            before = sum(cluster.traffic().values())
            whole = reduce_on(
                cluster, [store], ["adapter_output"], Moments(block_rows=32), shard_bytes=1 << 14
            )
            traffic = sum(cluster.traffic().values()) - before
    shards = sum(task.fn.__name__ == "leaf" for graph in graphs for task in graph.values())
    size = Part(whole).nbytes
    plan = plan_reduction(
        rows, 64, workers=2, shard_bytes=1 << 14, part_bytes=size, block_rows=32, chunk_bytes=16384
    )
    leaves = [task.weight for graph in graphs for task in graph.values() if task.fn.__name__ == "leaf"]
    assert leaves[0] > 2 * leaves[-2], "the last shards are not smaller"
    assert plan.shards == shards
    assert sum(map(len, graphs)) == plan.tasks
    assert shards > 5
    assert plan.part_bytes == pytest.approx(plan_reduction(rows, 64, workers=2).part_bytes, rel=0.2)
    assert 0.4 * plan.scheduler_bytes < traffic < 1.6 * plan.scheduler_bytes
    assert traffic < shards * size  # partial results do not pass the scheduler


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [
        "plan",
        "lab:aligned",
        "lab",
        "--measure",
        "false",
        "--limit",
        "30",
        "--store",
        str(tmp_path / "s.zarr"),
    ]
    assert main([*words, "--cluster", "local:8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cluster"]
    assert set(found) == {"adapter_output", "llm_final"}
    assert found["llm_final"]["workers"] == 8
    assert main([*words, "--cluster", "tcp://somewhere:8786"]) == 1
    assert "give --cluster-workers" in capsys.readouterr().err
    assert main([*words, "--cluster", "tcp://somewhere:8786", "--cluster-workers", "64"]) == 0
    assert "64 workers" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--cluster-workers", "2", "--cluster-device", "cuda"]) == 0
    assert "2 workers of one GPU" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--cluster-workers", "2", "--cluster-device", "tpu"]) == 2
    assert main([*words, "--cluster-device", "cuda"]) == 2  # of which cluster
    assert "expected cpu or cuda" in capsys.readouterr().err
