"""`modegap info STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.analyses.table import Column, Table
from modegap.stores import ActivationStore, StoreInfo
from modegap.stores import info as describe

from .output import Output, size

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to describe.

    Attributes:
        store: folder of the store, or of statistics (`extract --rows stats-only`).
    """

    store: str


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Shapes, bytes, provenance and labels of a store; points and counts of statistics."""
    if (Path(config.store).expanduser() / "moments.json").is_file():
        return _moments(config.store)
    found = describe(ActivationStore.open(config.store))
    return Output([_arrays(found), _labels(found), _origin(found)], found.to_json())


def _moments(path: str) -> Output:
    from modegap.engine.moments import MomentsStore

    store = MomentsStore.open(path)
    rows = [
        (name, info.width, store.count(name, "tokens"), store.count(name, "pooled"))
        for name, info in store.points.items()
    ]
    notes = [
        f"statistics of {store.n_complete} samples, no rows",
        f"plan {_start(store.plan_hash)}, content {_start(store.content_hash())}",
    ]
    table = Table(path, ["point", Column("width"), Column("token rows"), Column("pooled rows")], rows, notes)
    origin = Table("provenance", ["key", "value"], [(k, _short(v)) for k, v in store.provenance.items()])
    data = {
        "path": path,
        "samples": store.n_complete,
        "points": {name: {"width": w, "tokens": t, "pooled": p} for name, w, t, p in rows},
        "plan_hash": store.plan_hash,
        "content_hash": store.content_hash(),
        "provenance": store.provenance,
    }
    return Output([table, origin], data)


def _arrays(found: StoreInfo) -> Table:
    columns: list[Column | str] = [
        "point",
        "rows of",
        "stored",
        "of",
        Column("width"),
        "dtype",
        "chunks",
        Column("absmax", format=".4g"),
        "overflow",
    ]
    rows = [
        (
            a.point,
            a.kind,
            a.rows_committed,
            a.shape[0],
            a.shape[1],
            a.dtype,
            f"{a.chunks_committed}/{a.chunks}",
            a.absmax,
            a.overflow,
        )
        for a in found.arrays
    ]
    notes = [
        f"{found.complete_samples} of {found.samples} samples complete",
        f"{size(found.bytes_on_disk)} on disk; the same rows as float32 take {found.ratio:.2f} times that",
        f"profile {found.profile}, schema version {found.schema_version}",
        f"plan {_start(found.plan_hash)}, content {_start(found.content_hash)}",
    ]
    return Table(found.path, columns, rows, notes)


def _labels(found: StoreInfo) -> Table:
    rows = [(name, one.kind, one.categories or None, one.missing) for name, one in found.labels.items()]
    return Table("labels", ["name", "kind", "categories", "missing"], rows)


def _origin(found: StoreInfo) -> Table:
    rows = [(key, _short(value)) for key, value in found.provenance.items()]
    return Table("provenance", ["key", "value"], rows)


def _start(digest: str) -> str:
    """The first 12 digits of a digest, without the name of its kind."""
    return digest.rpartition(":")[2][:12]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
