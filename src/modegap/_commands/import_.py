"""`modegap import SOURCE STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modegap.analyses.table import Table
from modegap.engine.interchange import Source, import_store

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to import.

    Attributes:
        source: HDF5, npy, npz, safetensors or raw file; a folder of npy or raw files; a saved Hugging Face data
            set; any Zarr array or group; another store (to change its profile, dtype or points).
        store: folder of the store to make; an interrupted import goes on.
        format: what the source is, where its name does not say.
        points: names of the arrays to take; all unless given.
        samples: take only the first so many samples; by default those that the source says were filled.
        ids: `given` takes the sample ids of the source where it has some, `numbers` counts.
        dtype: stored type; float16 scales what is beyond its range.
        profile: layout of the store.
        width: features a row of a single raw file.
        raw_dtype: type of the values in it.
    """

    source: str
    store: str
    format: Source | None = None
    points: tuple[str, ...] | None = None
    samples: int | None = None
    ids: Literal["given", "numbers"] = "given"
    dtype: Literal["float16", "float32"] = "float16"
    profile: Literal["raw", "sharded", "archive"] = "raw"
    width: int | None = None
    raw_dtype: Literal["float16", "float32"] = "float16"


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Make a store from arrays of other tools."""
    with console.progress("import", unit="samples") as advance:
        store = import_store(
            config.source,
            config.store,
            format=config.format,
            points=config.points,
            samples=config.samples,
            ids=config.ids,
            dtype=config.dtype,
            profile=config.profile,
            width=config.width,
            raw_dtype=config.raw_dtype,
            progress=advance,
        )
    points = store.points.values()
    rows = [(p.name, p.rows, p.n_rows or len(store.samples), p.width, p.dtype) for p in points]
    table = Table(
        f"{config.store}: {store.n_complete} samples", ["point", "rows of", "rows", "width", "dtype"], rows
    )
    data = {"store": config.store, "samples": store.n_complete, "points": list(store.points)}
    return Output([table], data)
