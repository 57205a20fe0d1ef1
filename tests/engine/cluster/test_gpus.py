"""Passes of workers with a GPU each: long shards in runs, results that stay where they are, few files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.cluster import Cluster, plan_reduction, reduce_on, simulation
from modegap.engine.cluster import reducing as cluster_reducing
from modegap.engine.cluster.passes import leaf, prepare
from modegap.engine.cluster.session import Graph
from modegap.engine.moments import Moments
from modegap.engine.packing import Part
from modegap.engine.reduce import reduce
from modegap.engine.shards import Node, tree
from modegap.stores import ActivationStore

SMALL = 16 << 10
KEPT = 150_000  # four shards


@pytest.fixture
def as_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The host stands for the GPUs: what is cut, placed and kept is decided on the client. Graphs that were run."""
    for module in ("shards", "cluster.reducing", "cluster.simulation"):
        monkeypatch.setattr(f"modegap.engine.{module}.on_gpu", lambda device: True)
    for module in (cluster_reducing, simulation):
        monkeypatch.setattr(module, "DEVICE_KEPT_BYTES", KEPT)
    graphs: list[Graph] = []
    run = Cluster.run

    def noted(self: Cluster, make: Callable[[], Graph], *rest: Any) -> Any:
        def made() -> Graph:
            graphs.append(make())
            return graphs[-1]

        return run(self, made, *rest)

    monkeypatch.setattr(Cluster, "run", noted)
    return graphs


def fetched(dask_worker: Any) -> int:
    return int(dask_worker.state.transfer_incoming_count_total)


def test_runs_of_shards(
    as_gpus: list[Graph], cluster: Cluster, store: ActivationStore, tmp_path: Path
) -> None:
    kept = Cluster.__new__(Cluster)
    kept.__dict__.update(cluster.__dict__)
    kept.folder = tmp_path
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    given: dict[str, Any] = {"shard_bytes": SMALL}
    before = sum(cluster._client.run(fetched).values())
    whole = reduce_on(cluster, [store], ["adapter_output"], Moments(block_rows=64), **given)
    moved = sum(cluster._client.run(fetched).values()) - before
    first, graph = as_gpus
    leaves = [task for task in graph.values() if task.fn is leaf]
    count = len(leaves)
    assert count >= 12
    assert [task.run for task in leaves] == [(i, count) for i in range(count)]
    assert len({task.weight for task in leaves[:-1]}) == 1, "of one size"
    # neighbours are on one worker, but where an idle one took some: without runs half of the merges have to fetch
    assert moved <= count // 3

    # the bits are those of the tree over these shards, whoever did what
    work, _, start, stop, boundary = first["begin"].args
    prepared, size = prepare(work, Part(Moments(block_rows=64)), start, stop, boundary)
    parts = {Node(i, i + 1): leaf(prepared, *task.args[1:]) for i, task in enumerate(leaves)}
    for node in tree(count):
        if node.children:
            parts[node] = parts[node.children[0]].merged(parts[node.children[1]])
    mine = parts[Node(0, count)].reduction.finalize()
    found = whole.finalize()
    assert torch.equal(found.covariance, mine.covariance)
    assert (found.covariance - one.covariance).abs().max() <= 1e-10 * one.covariance.abs().max()

    # with a folder only what took long is kept
    again = reduce_on(kept, [store], ["adapter_output"], Moments(block_rows=64), **given)
    assert torch.equal(again.finalize().covariance, found.covariance)
    ends = {name: task for name, task in as_gpus[-1].items() if task.path is not None}
    assert all(name.startswith("merge") for name in ends)
    assert 3 <= len(ends) <= count // 2
    assert not list(tmp_path.rglob("*.part")), "partial results stay behind"

    rows = store.rows("adapter_output")
    plan = plan_reduction(
        rows.n_valid_rows, 24, workers=2, device="cuda", block_rows=64, chunk_bytes=rows.chunk_rows * 48,
        part_bytes=size, **given,
    )  # fmt: skip
    assert plan.shards == count
    assert plan.tasks == len(first) + len(graph)
    assert plan.folder_bytes <= len(ends) * size
    assert plan.moved_bytes <= count // 3 * size


def test_a_run_goes_on_from_its_few_files(
    as_gpus: list[Graph], cluster: Cluster, store: ActivationStore, tmp_path: Path
) -> None:
    kept = Cluster.__new__(Cluster)
    kept.__dict__.update(cluster.__dict__)
    kept.folder = tmp_path

    class Stopped(Exception):
        pass

    rows = store.rows("adapter_output").n_valid_rows

    def progress(done: int, *_: int) -> None:
        if done >= rows and list(tmp_path.rglob("*.part")):
            raise Stopped

    given: dict[str, Any] = {"shard_bytes": SMALL}

    def stopped() -> None:
        for _ in range(6):  # where one worker happens to take every task, no result leaves it for a file
            reduce_on(kept, [store], ["adapter_output"], Moments(block_rows=64), progress=progress, **given)

    with pytest.raises(Stopped):
        stopped()
    done: list[int] = []
    said = lambda seen, *_: done.append(seen)  # noqa: E731
    found = reduce_on(kept, [store], ["adapter_output"], Moments(block_rows=64), progress=said, **given)
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    covariance = found.finalize().covariance
    assert (covariance - one.covariance).abs().max() <= 1e-10 * one.covariance.abs().max()
    assert done[0] > 0, "what the files hold was computed again"
    assert not list(tmp_path.rglob("*.part"))


def test_the_plan_of_gpus() -> None:
    one, two, four = (plan_reduction(n << 20, 4096, workers=n, device="cuda") for n in (1, 2, 4))
    assert (one.shards, two.shards, four.shards) == (4, 8, 16)
    assert (one.moved_bytes, two.moved_bytes, four.moved_bytes) == tuple(
        n * one.part_bytes for n in (0, 1, 3)
    )
    assert one.folder_bytes == 0
    assert one.seconds == pytest.approx(one.read_bytes / 38e9 + 4 * 0.015)
    many = plan_reduction(1000 * 32768, 4096, workers=8, device="cuda")
    assert many.folder_bytes >= many.part_bytes
    assert many.seconds < plan_reduction(1000 * 32768, 4096, workers=8).seconds / 50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_part_stays_on_its_gpu_and_goes_back_to_one() -> None:
    torch.manual_seed(0)
    parts = []
    for i in range(2):
        one = Moments(block_rows=256)
        one.update(ActivationBatch((torch.randn(700, 512, device="cuda") + 3 * i).half(), 700 * i, "p"))
        parts.append(Part(one, 700))
    wanted = parts[0].merged(parts[1]).reduction
    assert wanted.state_dict()["gram"].is_cuda
    here, there = (pickle.loads(pickle.dumps(part, protocol=5)) for part in parts)
    assert not here.reduction.state_dict()["gram"].is_cuda
    for pair in ((parts[0], there), (here, parts[1]), (here, there)):
        found = pair[0].merged(pair[1]).reduction
        assert found.state_dict()["gram"].is_cuda
        assert torch.equal(found.state_dict()["gram"].tril(), wanted.state_dict()["gram"].tril())
        assert torch.equal(
            found.finalize().covariance, parts[0].merged(parts[1]).reduction.finalize().covariance
        )
