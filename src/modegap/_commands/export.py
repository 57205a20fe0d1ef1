"""`modegap export STORE OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modegap.analyses.table import Table
from modegap.engine.interchange import Format, export_store
from modegap.stores import ActivationStore

from .output import Output, size

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to export.

    Attributes:
        store: folder of the store.
        out: file to write (.h5, .npz, .safetensors), or folder (format npy, raw or datasets).
        format: what to write, where the name does not say.
        points: hook points; all that have these rows unless given.
        rows: `pooled`, `tokens` or `both`; pooled unless given, where the store has them.
    """

    store: str
    out: str
    format: Format | None = None
    points: tuple[str, ...] | None = None
    rows: Literal["pooled", "tokens", "both"] | None = None


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Write a store's true values as arrays for other tools."""
    store = ActivationStore.open(config.store)
    unit = "samples" if config.format == "datasets" else "B"
    with console.progress("export", unit=unit) as advance:
        path = export_store(
            store,
            config.out,
            format=config.format,
            points=config.points,
            rows=config.rows,
            progress=advance,
        )
    written = _bytes(path)
    table = Table(str(path), ["samples", "bytes"], [(len(store.samples), size(written))])
    return Output([table], {"out": str(path), "samples": len(store.samples), "bytes": written})


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())
