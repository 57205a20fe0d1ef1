"""A store's rows as a file or folder of arrays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, RowArray, aligned_empty

from .formats import BLOCK_BYTES, LENGTH, Planned, as_json, format_of, sidecar_of
from .sinks import write_arrays

Progress = Callable[[int, int], None]


def export_store(
    store: ActivationStore,
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    points: Sequence[str] | None = None,
    rows: Literal["pooled", "tokens"] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the true values of a store's rows to `out`, ids and labels to a JSON file; return `out`.

    HDF5 holds float32; all others the stored dtype, or float32 for a point with scaled chunks. `out` appears
    complete or not at all. Memory: one block of 16 MiB.

    Args:
        store: a complete store.
        out: file, or for npy and raw a folder.
        format: one of `FORMATS`, unless the suffix says it.
        points: names; all that have these rows unless given.
        rows: "pooled" or "tokens"; pooled unless given, where the store has them.
        progress: called as progress(bytes done, bytes).

    Raises:
        EngineError: `out` exists, the store is incomplete, or no point has such rows.
        StoreError: an unknown point, or a damaged chunk. ValueError: bad arguments.
    """
    path = Path(out)
    kind = format_of(path, format)
    if kind in ("npy", "raw") and path.suffix:
        raise ValueError(f"{kind} goes to a folder with a file for each array: leave the suffix off {path}")
    beside = sidecar_of(path, kind)
    for taken in (path, beside):
        if taken.exists():
            raise EngineError(f"{taken} exists already: choose another path, or remove it")
    if store.n_complete < len(store.samples):
        raise EngineError(
            f"{store.n_complete} of {len(store.samples)} samples of {store.path} are complete: resume it"
        )
    chosen = _chosen(store, points, rows)
    planned, lengths = _planned(chosen, wide=kind == "hdf5")
    total, done = sum(array.nbytes for array in planned.values()), 0

    def blocks(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        source = iter((lengths[name],)) if name in lengths else _blocks(chosen[name], planned[name].dtype)
        for block in source:
            yield block
            done += block.nbytes
            if progress is not None:
                progress(done, total)

    described = {
        "format": kind,
        "arrays": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in planned.items()},
        "sample_ids": store.samples,
        "labels": {name: {"kind": c.kind, "values": list(c.values)} for name, c in store.labels.items()},
        "provenance": store.provenance,
    }
    part = path.with_name(f".{path.name}.partial")
    _remove(part)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(part, kind, planned, blocks, store.provenance)
        target = part / beside.name if beside.parent == path else beside
        target.write_text(as_json(described))
        part.rename(path)
    except BaseException:
        _remove(part)
        if beside.parent != path:
            beside.unlink(missing_ok=True)
        raise
    return path


def _chosen(
    store: ActivationStore, points: Sequence[str] | None, rows: Literal["pooled", "tokens"] | None
) -> dict[str, RowArray]:
    if rows not in (None, "pooled", "tokens"):
        raise ValueError(f"rows must be 'pooled' or 'tokens', got {rows!r}")
    if points is not None:
        kinds = {name: store.rows(name, rows or _usual(store, name)) for name in points}
    else:
        pooled = any(info.rows != "tokens" for info in store.points.values())
        kind: Literal["pooled", "tokens"] = rows or ("pooled" if pooled else "tokens")
        kinds = {
            name: store.rows(name, kind) for name, info in store.points.items() if info.rows in (kind, "both")
        }
    if not kinds:
        raise EngineError(f"no point of {store.path} has {rows} rows: choose the others with --rows")
    return kinds


def _usual(store: ActivationStore, point: str) -> Literal["pooled", "tokens"]:
    return "tokens" if point in store.points and store.points[point].rows == "tokens" else "pooled"


def _planned(chosen: dict[str, RowArray], *, wide: bool) -> tuple[dict[str, Planned], dict[str, np.ndarray]]:
    planned, lengths = {}, {}
    for name, rows in chosen.items():
        scaled = any(rows.scale(chunk) != 1.0 for chunk in range(rows.n_chunks))
        planned[name] = Planned(rows.shape, np.dtype(np.float32) if wide or scaled else rows.dtype)
        counted = rows.lengths()
        if counted is not None:
            planned[name + LENGTH] = Planned(counted.shape, np.dtype(np.int64))
            lengths[name + LENGTH] = counted
    return planned, lengths


def _blocks(rows: RowArray, dtype: np.dtype) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_BYTES // (rows.shape[1] * dtype.itemsize))
    buffer = aligned_empty((size, rows.shape[1]), dtype)
    for start in range(0, rows.shape[0], size):
        stop = min(start + size, rows.shape[0])
        yield rows.read(start, stop, buffer[: stop - start])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
