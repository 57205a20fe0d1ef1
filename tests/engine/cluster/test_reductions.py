"""Reductions over worker processes equal one process's, whatever the workers and the shards."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from cluster_material import importable, make_store

from modegap.engine.cluster import Cluster, connect, rayleigh_on, reduce_on
from modegap.engine.cluster.memory import (
    TooLargeError,
    check_workers,
    fits,
    needed_limit,
)
from modegap.engine.cluster.passes import Pass, leaf, prepare
from modegap.engine.cluster.processes import SETTINGS, environment
from modegap.engine.cluster.tiles import moments_by_tiles, tile_bytes, tile_width
from modegap.engine.errors import EngineError
from modegap.engine.machine import processes_here
from modegap.engine.moments import ClassMoments, CrossMoments, Moments, ProjectionEnergy
from modegap.engine.packing import Part
from modegap.engine.reduce import reduce, reduce_pairs
from modegap.engine.reduction_checks import numbers
from modegap.engine.shards import Shard
from modegap.engine.stream import stream
from modegap.kernels import rayleigh
from modegap.stores import ActivationStore

SMALL = 64 << 10  # bytes a shard: a dozen shards of the store


def same(found: Any, wanted: Any, tolerance: float = 1e-10) -> None:
    ours, theirs = numbers(found), numbers(wanted)
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        assert np.abs(ours[name] - want).max() <= tolerance * max(np.abs(want).max(), 1e-30), name


def reductions(width: int = 24) -> list[Any]:
    rng = np.random.default_rng(1)
    directions = torch.from_numpy(rng.standard_normal((width, 7)))
    return [
        Moments(block_rows=64),
        Moments("exact"),
        ClassMoments([i % 3 for i in range(40)], 3, block_rows=64),
        ProjectionEnergy(directions, block_rows=64),
    ]


@pytest.mark.parametrize("which", range(4))
def test_any_reduction_equals_one_process(which: int, cluster: Cluster, store: ActivationStore) -> None:
    one = reduce(store, "adapter_output", reductions()[which])
    found = reduce_on(cluster, [store], ["adapter_output"], reductions()[which], shard_bytes=SMALL)
    result = found.finalize()
    same(result, one)
    assert result.certificate.kernel_paths == one.certificate.kernel_paths
    assert result.audit_error == pytest.approx(one.audit_error, rel=1e-6)


def test_the_facade_takes_a_cluster(cluster: Cluster, store: ActivationStore) -> None:
    seen: list[tuple[int, int, int]] = []
    found = reduce(store, "llm_final", Moments(), cluster=cluster, progress=lambda *a: seen.append(a))
    one = reduce(store, "llm_final", Moments())
    same(found, one)
    assert found.certificate.store_hashes == one.certificate.store_hashes
    rows = store.rows("llm_final").n_valid_rows
    assert seen[-1] == (rows, rows, rows * 24 * 2)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "pooled"},
        {"start": 1000, "stop": 9000},
        {"select": ["image", "audio"]},
        {"samples": np.arange(3, 37, 2)},
        {"select": "text", "samples": np.arange(20), "start": 100},
    ],
)
def test_selections(options: dict[str, Any], cluster: Cluster, store: ActivationStore) -> None:
    make = lambda: Moments(block_rows=64)  # noqa: E731
    one = reduce(store, "adapter_output", make(), **options)
    found = reduce_on(cluster, [store], ["adapter_output"], make(), shard_bytes=SMALL // 4, **options)
    same(found.finalize(), one)


def test_parts_hold_no_scratch_memory(store: ActivationStore) -> None:
    work = Pass(str(store.path), store.plan_hash, ("adapter_output",), "tokens")
    prepared, _ = prepare(work, Part(Moments(block_rows=64)), 0, 2000, 64)
    shards = [Shard(i, 1024 * i, 1024 * i + 1024, 1024) for i in range(2)]
    first, second = (
        leaf(prepared, shard, work.digests(shard.start, shard.stop)).reduction for shard in shards
    )
    assert first._workspace.nbytes == second._workspace.nbytes == 0
    one = reduce(store, "adapter_output", Moments(block_rows=64), start=0, stop=2048)
    same(first.merge(second).finalize(), one)


def test_pairs_of_points_and_of_stores(cluster: Cluster, store: ActivationStore, tmp_path: Path) -> None:
    other = make_store(tmp_path / "b.zarr", seed=0)
    points = ("adapter_output", "llm_final")
    one = reduce_pairs(store, points, CrossMoments(block_rows=64), other=other)
    found = reduce_pairs(store, points, CrossMoments(block_rows=64), other=other, cluster=cluster)
    same(found, one)
    assert set(found.certificate.store_hashes) == {"store", "other"}


def test_the_number_of_workers_changes_no_bit(cluster: Cluster, store: ActivationStore) -> None:
    two = reduce_on(
        cluster, [store], ["adapter_output"], Moments(block_rows=64), shard_bytes=SMALL
    ).finalize()
    with connect("local:1") as alone:
        one = reduce_on(
            alone, [store], ["adapter_output"], Moments(block_rows=64), shard_bytes=SMALL
        ).finalize()
    assert torch.equal(one.covariance, two.covariance)
    assert torch.equal(one.mean, two.mean)


def test_no_rows_and_bad_ranges(cluster: Cluster, store: ActivationStore) -> None:
    empty = reduce_on(cluster, [store], ["adapter_output"], Moments(), start=5, stop=5)
    with pytest.raises(EngineError, match="0 rows"):
        empty.finalize()
    with pytest.raises(ValueError, match="start, stop"):
        reduce_on(cluster, [store], ["adapter_output"], Moments(), start=5, stop=10**9)


def test_a_value_that_is_not_finite_names_the_worker_and_the_row(cluster: Cluster, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", samples=3)
    labels = [5, 5, 5]
    with pytest.raises(ValueError, match="expected below"):
        reduce(store, "adapter_output", ClassMoments(labels, 3), cluster=cluster)
    chunk = next(p for p in sorted((store.path / "points/adapter_output/rows/c").rglob("*")) if p.is_file())
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(EngineError, match=r"worker tcp://.* on .*: .*checksum"):
        reduce(store, "adapter_output", Moments(), cluster=cluster)


def test_a_worker_without_the_store_says_so(cluster: Cluster, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", samples=3)
    assert store.n_complete == 3
    assert store.rows("adapter_output").n_valid_rows
    for array in store.arrays:  # the client has looked at everything it needs
        for chunk in range(array.spec.n_chunks):
            store.commits(array).record(chunk)
    store.path.rename(tmp_path / "moved.zarr")
    with pytest.raises(
        EngineError, match=r"worker tcp://.*cannot be opened here.*mount .*a\.zarr on every worker"
    ):
        reduce_on(cluster, [store], ["adapter_output"], Moments())
    make_store(tmp_path / "a.zarr", samples=4)
    with pytest.raises(EngineError, match="another store here than on the client"):
        reduce_on(cluster, [store], ["adapter_output"], Moments())


def test_a_resumed_store_is_read_anew(cluster: Cluster, tmp_path: Path) -> None:
    store = make_store(tmp_path / "a.zarr", samples=6)
    same(reduce(store, "llm_final", Moments(), cluster=cluster), reduce(store, "llm_final", Moments()))
    record = store.path / "_commit/points/llm_final/rows/0.json"
    hidden = record.read_bytes()
    record.unlink()
    store.refresh()
    assert store.rows("llm_final").n_valid_rows == 0
    record.write_bytes(hidden)
    store.refresh()
    same(reduce(store, "llm_final", Moments(), cluster=cluster), reduce(store, "llm_final", Moments()))


@pytest.mark.parametrize("mode", ["precise", "exact"])
def test_tiles_give_the_bits_of_the_whole(mode: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "wide.zarr", samples=5, width=1100, longest=300, chunk=1 << 20)
    one = reduce(store, "adapter_output", Moments(mode))

    def spread(part: Any, number: int, count: int) -> Any:
        assert number < count == 7  # three tiles a side, and the audit
        for batch in stream(store, "adapter_output"):
            part.update(batch)
        return part

    found = moments_by_tiles(Moments(mode), 1100, 512, spread)
    same(found, one, 1e-12)
    assert found.audit_error == pytest.approx(one.audit_error, rel=1e-6)
    assert torch.equal(found.covariance, found.covariance.T)


def test_a_covariance_that_no_worker_holds_is_tiled(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "wide.zarr", samples=2, width=1100, longest=300, chunk=1 << 20)
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    limit = (
        needed_limit(tile_bytes(512, 2 * 64 * 1100 * 2, 1 << 20)) + 10
    )  # a tile of 512 channels, not 1,100
    monkeypatch.setattr(Cluster, "workers", lambda self: {"tcp://a": {"nthreads": 1, "memory_limit": limit}})
    passes: list[int] = []
    options: dict[str, Any] = {"cluster": cluster, "progress": lambda *a: passes.append(a[1])}
    found = reduce(store, "adapter_output", Moments(block_rows=64), **options)
    same(found, one, 1e-12)
    rows = store.rows("adapter_output").n_valid_rows
    assert passes[-1] == 7 * rows  # six tiles of 512, 512 and 76 channels, and the audit
    with pytest.raises(TooLargeError, match=r"a worker needs a memory limit of \d"):
        reduce(store, "adapter_output", ClassMoments([0, 1], 2, block_rows=64), cluster=cluster)


def test_memory_limits() -> None:
    need = 10**9
    assert fits(need, needed_limit(need) + 1)
    assert not fits(need, needed_limit(need) - 10)
    workers = {
        "a": {"memory_limit": needed_limit(need) + 1},
        "b": {"memory_limit": 10**8},
        "c": {"memory_limit": 0},
    }
    assert check_workers(workers, need, "x") == ["a", "c"]  # none given is no limit
    with pytest.raises(TooLargeError, match=r"needs a memory limit of 1\.77 GB, the largest has 0\.10 GB"):
        check_workers({"b": workers["b"]}, need, "x")
    with pytest.raises(EngineError, match="a tile of 512 x 512"):
        tile_width(4096, 500 << 20, 32 << 20, 16 << 20)
    assert tile_width(300, 10**10, 2 << 20, 16 << 20) == 300


def test_mode_sharded_quotients(cluster: Cluster) -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((60, 60))
    covariance, modes = root @ root.T, np.linalg.qr(rng.standard_normal((60, 60)))[0][:, :50]
    found = rayleigh_on(cluster, modes, covariance, block=8)
    one = rayleigh(torch.from_numpy(modes), torch.from_numpy(covariance)).numpy()
    assert np.abs(found - one).max() <= 1e-12 * np.abs(one).max()
    assert not list(cluster.scratch().glob("*.npy"))


def test_workers_of_another_version_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modegap.engine.cluster.session.__version__", "9.9")
    with pytest.raises(EngineError, match=r"has modegap .*, this is 9\.9"):
        cluster.ready()


def _run_and_die(store: str, folder: str, after: int) -> None:
    def progress(done: int, total: int, nbytes: int) -> None:
        if done >= after:
            os._exit(9)

    with connect("local:1", folder) as cluster:
        reduce_on(
            cluster, [ActivationStore.open(store)], ["adapter_output"], Moments(block_rows=64),
            shard_bytes=SMALL, progress=progress,
        )  # fmt: skip


def test_a_killed_client_goes_on_from_its_files(
    cluster: Cluster, store: ActivationStore, tmp_path: Path
) -> None:
    rows = store.rows("adapter_output").n_valid_rows
    child = multiprocessing.get_context("spawn").Process(
        target=_run_and_die, args=(str(store.path), str(tmp_path), rows // 2)
    )
    child.start()
    child.join(60)
    assert child.exitcode == 9
    kept = list(tmp_path.rglob("*.part"))
    assert kept
    resumed = Cluster.__new__(Cluster)
    resumed.__dict__.update(cluster.__dict__)
    resumed.folder = tmp_path
    done: list[int] = []
    one = reduce(store, "adapter_output", Moments(block_rows=64))
    found = reduce_on(
        resumed, [store], ["adapter_output"], Moments(block_rows=64), shard_bytes=SMALL,
        progress=lambda seen, *_: done.append(seen),
    )  # fmt: skip
    same(found.finalize(), one)
    assert done[0] >= rows // 2 - rows // 8, "what the files hold was computed again"
    assert not list(tmp_path.rglob("*.part")), "partial results stay behind"


def test_workers_have_their_settings(cluster: Cluster) -> None:
    """Dask's own give freed memory back at once, twice the CPU time for page faults, and look around every 20 ms."""
    cluster.ready()
    for name, value in environment().items():
        assert set(cluster._client.run(os.getenv, name).values()) == {value}
    for name, value in SETTINGS.items():
        assert set(cluster._client.run(dask.config.get, name).values()) == {value}
    assert cluster._client.run_on_scheduler(_saturation) == 1.0


def test_workers_know_how_many_share_the_machine(cluster: Cluster) -> None:
    cluster.ready()
    assert set(cluster._client.run(processes_here).values()) == {2}


def test_the_settings_can_be_given_to_workers_of_others() -> None:
    words = [sys.executable, "-m", "modegap.engine.cluster.processes"]
    said = subprocess.run(words, env=importable(), capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"export {name}={value}" for name, value in environment().items()]


def _saturation(dask_scheduler: Any) -> float:
    return float(dask_scheduler.WORKER_SATURATION)
