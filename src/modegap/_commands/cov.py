"""`modegap cov STORE POINT`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modegap.analyses.table import Column, Table

from .clustering import ClusterOptions, workers
from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.moments import MomentsResult
    from modegap.engine.parallel import Ranks


@dataclass(frozen=True, slots=True)
class Config:
    """What is reduced, and how.

    Attributes:
        store: folder of the store, or of statistics (`extract --rows stats-only`).
        point: hook point.
        rows: `tokens` or `pooled`; token rows where the store has them unless given.
        mode: `precise` (fp32 products, fp64 sums), `exact` (fp64 throughout) or `fast`.
        device: where the covariance is accumulated, for example `cuda`; the host unless given.
        out: safetensors file for mean and covariance (fp64); nothing is written unless given.
        checkpoint: file that holds the state while the pass runs, so that a killed pass goes on.
    """

    store: str
    point: str
    rows: Literal["tokens", "pooled"] | None = None
    mode: Literal["precise", "exact", "fast"] = "precise"
    device: str | None = None
    out: str | None = None
    checkpoint: str | None = None


CONFIGS = (Config, ClusterOptions)


def run(config: Config, options: ClusterOptions, console: Console) -> Output:
    """Count, mean and covariance of a hook point's rows, with their certificate."""
    from modegap.engine.moments import Moments, MomentsStore, has_moments
    from modegap.engine.parallel import launched
    from modegap.engine.reduce import reduce
    from modegap.stores import ActivationStore

    if has_moments(config.store):
        found = MomentsStore.open(config.store).moments(config.point, config.rows or "tokens")
        return _shown(config, found)
    if options.cluster is not None and config.checkpoint is not None:
        raise ValueError("checkpoint: a cluster keeps partial results in run_folder; drop one of the two")
    with launched() as ranks:
        if ranks is not None:
            return _by_ranks(config, options, ranks, console)
    with workers(options, config.out, console) as cluster, console.progress("covariance") as advance:
        found = reduce(
            ActivationStore.open(config.store),
            config.point,
            Moments(mode=config.mode),
            kind=config.rows,
            device=config.device,
            checkpoint=config.checkpoint,
            progress=advance,
            cluster=cluster,
        )
        shown = _shown(config, found)  # saved before what it was made from is removed
    return shown


def _by_ranks(config: Config, options: ClusterOptions, ranks: Ranks, console: Console) -> Output:
    """A share of the rows in each process of torchrun; the first one saves."""
    from modegap.engine.moments import Moments
    from modegap.engine.parallel import reduce
    from modegap.stores import ActivationStore

    if options.cluster is not None or config.checkpoint is not None:
        raise ValueError("cluster, checkpoint: under torchrun its processes do the work; drop them")
    with console.progress("covariance") as advance:
        found = reduce(
            ActivationStore.open(config.store),
            config.point,
            Moments(mode=config.mode),
            ranks=ranks,
            kind=config.rows,
            device=config.device,
            progress=advance,
        )
    return _shown(config if ranks.first else replace(config, out=None), found)


def _shown(config: Config, found: MomentsResult) -> Output:
    if config.out is not None:
        _save(found, Path(config.out))
    facts: dict[str, Any] = {
        "rows": found.count,
        "width": found.width,
        "total variance": float(found.covariance.diagonal().sum()),
        "largest channel std": float(found.std.max()),
        "largest absolute value": float(found.absmax.max()),
    }
    notes = [
        f"{found.certificate.mode}, audit error {found.audit_error:.2g}, n/d {found.count / found.width:.3g}, "
        f"{found.overflow_count} values beyond fp16",
    ]
    if config.out is not None:
        notes.append(f"mean and covariance: {config.out}")
    table = Table(
        f"{config.store}: {config.point}", ["", Column("value", format=".6g")], list(facts.items()), notes
    )
    return Output([table], {**facts, "out": config.out, "certificate": found.certificate.to_json()})


def _save(found: MomentsResult, path: Path) -> None:
    from safetensors.torch import save_file

    from modegap.stores.durable import replaced

    with replaced(path) as aside:
        save_file({"mean": found.mean.cpu(), "covariance": found.covariance.cpu().contiguous()}, aside,
                  metadata={"count": str(found.count)})  # fmt: skip
