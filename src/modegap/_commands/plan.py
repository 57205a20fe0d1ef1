"""`modegap plan MODEL DATASET --points ...`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.table import Column, Table
from modegap.engine.capture.config import ExtractConfig

from .data import DataOptions, open_data
from .output import Output, size

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.models import LoadedModel
    from modegap.engine.plan import CapturePlan


@dataclass(frozen=True, slots=True)
class Config(ExtractConfig):
    """The capture to plan; the options are those of `modegap extract`.

    Attributes:
        store: folder where the store would be; its disk is what is checked.
        points: hook points, names or globs; the adapter's and the decoder's last unless given.
    """

    store: str = "store.zarr"
    points: tuple[str, ...] = ("adapter_output", "llm_final")


@dataclass(frozen=True, slots=True)
class Options:
    """How to plan.

    Attributes:
        measure: load the model, where it fits, and time a few batches.
        gpu_memory: GB of the GPUs to plan for; those of this machine unless given.
        cluster: also plan the covariances of the points on a cluster: local:N, an address, a YAML file; nothing is
            started.
        cluster_workers: how many workers it has, where `cluster` does not say.
        cluster_device: where they put the rows: `cuda` for a GPU each; the host unless given.
    """

    measure: bool = True
    gpu_memory: float | None = None
    cluster: str | None = None
    cluster_workers: int | None = None
    cluster_device: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a size that makes no sense."""
        if self.gpu_memory is not None and self.gpu_memory <= 0:
            raise ValueError(f"got gpu_memory {self.gpu_memory}; expected GB above 0")
        if self.cluster_workers is not None and self.cluster_workers < 1:
            raise ValueError(f"got cluster_workers {self.cluster_workers}; expected at least 1")
        if self.cluster_device not in (None, "cpu", "cuda"):
            raise ValueError(f"got cluster_device {self.cluster_device!r}; expected cpu or cuda")
        if self.cluster_device is not None and self.cluster is None and self.cluster_workers is None:
            raise ValueError(
                "got cluster_device and no cluster; say how many workers with cluster_workers, or cluster"
            )


CONFIGS = (Config, DataOptions, Options)


def run(config: Config, options: DataOptions, planning: Options, console: Console) -> Output:
    """Bytes by hook point, memory, GPUs and time of a capture; fails, and says what would fit, if it does not."""
    from modegap._facade import load
    from modegap.engine.plan import plan

    def loaded(wanted: ExtractConfig) -> LoadedModel:
        return load(
            wanted.model,
            dtype=wanted.dtype,
            device_map=wanted.device_map,
            revision=wanted.revision,
            trust_remote_code=wanted.trust_remote_code,
            points=wanted.module,
        )

    data = open_data(config.dataset, options, keep_missing=config.as_text or config.skip_bad)
    lab = config.model.partition(":")[0] == "lab"  # too small to be built without weights
    with console.progress("plan", unit="samples") as advance:
        found = plan(
            config,
            data,
            model=loaded(config) if lab else None,
            measure=planning.measure,
            gpu_bytes=None if planning.gpu_memory is None else int(planning.gpu_memory * 1e9),
            load=loaded,
            progress=lambda phase, done, total: advance(done, total, label=phase),
        )
    tables, said = [_bytes(found), _needs(found)], found.to_json()
    if planning.cluster is not None or planning.cluster_workers is not None:
        table, said["cluster"] = _on_cluster(found, planning)
        tables.append(table)
    return Output(tables, said, exit_code=0 if found.fits else 1)


def _on_cluster(found: CapturePlan, planning: Options) -> tuple[Table, dict[str, Any]]:
    from modegap.engine.cluster import parse, plan_reduction
    from modegap.engine.cluster.simulation import DEVICE_RATE, HOST_RATE

    spec = parse(planning.cluster or "local")
    workers = planning.cluster_workers or spec.workers or (spec.adapt[1] if spec.adapt else None)
    if workers is None:
        raise ValueError(
            f"cluster: {spec.said} does not say how many workers there are; give --cluster-workers"
        )
    plans = {}
    for point in found.points:
        rows = point.rows or found.samples
        nbytes = point.token_bytes or point.pooled_bytes
        itemsize = max(1, round(nbytes / (rows * point.width)))
        plans[point.point] = plan_reduction(
            rows, point.width, workers=workers, itemsize=itemsize, device=planning.cluster_device
        )
    rows_shown = [
        (
            name,
            p.shards,
            p.tasks,
            size(p.read_bytes),
            f"{size(p.scheduler_bytes)} ({p.scheduler_share:.2%})",
            size(p.moved_bytes),
            size(p.folder_bytes),
            size(p.worker_limit),
            _duration(p.seconds),
        )
        for name, p in plans.items()
    ]
    unit, rate = ("GPU", DEVICE_RATE) if planning.cluster_device == "cuda" else ("thread", HOST_RATE)
    columns: list[Column | str] = ["point", Column("shards"), Column("tasks"), "read", "scheduler", "between workers",
                                   "run folder", "memory a worker", "time"]  # fmt: skip
    notes = [
        f"the covariance of each point on {workers} workers of one {unit}, by a walk through its tasks; time at "
        f"{rate / 1e9:g} GB of rows a second and worker for width 4096, start-up not counted"
    ]
    return Table("cluster", columns, rows_shown, notes), {name: p.to_json() for name, p in plans.items()}


def _bytes(found: CapturePlan) -> Table:
    rows = [
        (
            p.point,
            p.width,
            p.rows or None,
            size(p.token_bytes),
            size(p.pooled_bytes),
            "" if p.exact else "estimate",
        )
        for p in found.points
    ]
    columns: list[Column | str] = ["point", Column("width"), Column("token rows"), "tokens", "pooled", ""]
    notes = [
        f"{found.samples} samples, {found.tokens:,} tokens, the longest has {found.longest:,}"
        + (f"; {found.skipped} left out" if found.skipped else ""),
        f"{size(found.store_bytes)} in all"
        + (f", {size(found.work_bytes)} between layers" if found.work_bytes else ""),
    ]
    return Table(f"{found.model} over {found.dataset}", columns, rows, notes)


def _needs(found: CapturePlan) -> Table:
    rows: list[tuple[str, Any]] = [
        ("weights", size(found.weight_bytes)),
        ("largest layer", size(found.layer_bytes)),
        ("a batch on the device", size(found.batch_bytes)),
        ("rows on the host", size(found.host_bytes)),
    ]
    if found.gpu_bytes is not None:
        rows.append((f"GPUs of {size(found.gpu_bytes)}", found.gpus))
        rows.append(("layer streaming on one", "fits" if found.streams_on_one else "does not fit"))
    if found.probe is not None and found.seconds is not None:
        rows.append(("time", _duration(found.seconds)))
        rows.append(("measured", f"{found.probe.tokens_per_second:,.0f} tokens/s, "
                     f"{size(found.probe.disk_bytes_per_second)}/s to the disk"))  # fmt: skip
        if found.probe.peak_bytes is not None:
            rows.append(("measured peak of a batch", size(found.probe.peak_bytes)))
    for limit in found.limits:
        free = "unknown" if limit.available is None else size(limit.available)
        rows.append(
            (limit.what, f"{size(limit.needed)} of {free}" + ("" if limit.fits else ": DOES NOT FIT"))
        )
    notes = [*found.notes, *(limit.refusal() for limit in found.limits if not limit.fits)]
    return Table("needs", ["what", "value"], rows, notes)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
