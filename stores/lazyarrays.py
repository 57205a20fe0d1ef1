"""A point's rows as a Dask array or an xarray data set, for people who work with those; nothing is read at once.

This is the one place outside the engine's cluster package that imports Dask, and only its arrays: a store needs no
scheduler and knows of none.
"""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import StoreError

if TYPE_CHECKING:
    from .store import ActivationStore, RowKind


def dask_array(store: ActivationStore, point: str, kind: RowKind) -> Any:
    """The true values of complete samples' rows [n, d], one block a chunk of the store.

    Raises:
        StoreError: Dask is not installed, or as `ActivationStore.rows`.
    """
    da, delayed = _installed("dask.array", "dask[array]"), _installed("dask", "dask[array]").delayed
    rows = store.rows(point, kind)
    count, width = rows.n_valid_rows, rows.shape[1]
    size = rows.chunk_rows
    scaled = any(rows.scale(chunk) != 1.0 for chunk in range(-(-count // size)))
    dtype = np.dtype(np.float32) if scaled else rows.dtype
    edges = [*range(0, count, size), count]
    name, url = _name(store, point, kind), str(store.path)
    if not count:
        return da.zeros((0, width), dtype=dtype)
    read = delayed(_read, pure=True)
    blocks = [
        da.from_delayed(
            read(url, store.plan_hash, point, kind, lo, hi, dtype.str, dask_key_name=f"{name}-{lo}"),
            (hi - lo, width),
            dtype=dtype,
        )
        for lo, hi in pairwise(edges)
    ]
    return da.concatenate(blocks, axis=0)


def xarray_dataset(store: ActivationStore, point: str, kind: RowKind) -> Any:
    """The rows as `rows` (row, channel) with coordinates, attributes the store's provenance.

    Coordinates of the rows: sample (id), every label, and for token rows position and modality.

    Raises:
        StoreError: Dask or xarray is not installed, or as `ActivationStore.rows`.
    """
    xarray = _installed("xarray", "xarray")
    rows = store.rows(point, kind)
    count = rows.n_valid_rows
    of = rows.sample_of_row(0, count)
    dim = "sample" if kind == "pooled" else "row"
    ids = np.asarray(store.samples)[of]
    coords: dict[str, Any] = {"channel": np.arange(rows.shape[1])}
    coords["sample" if kind == "pooled" else "sample_id"] = (dim, ids)
    for name, column in store.labels.items():
        label = f"label_{name}" if name in (dim, "channel", "sample_id", "position", "modality") else name
        coords[label] = (dim, _column(column.values)[of])
    if kind == "tokens":
        coords["position"] = (dim, rows.position(0, count))
        modality = rows.modality(0, count)
        if modality is not None:
            coords["modality"] = (dim, modality)
    attributes = {
        "point": point,
        "kind": kind,
        "store": str(store.path),
        "content_hash": store.content_hash(),
    }
    return xarray.Dataset({"rows": ((dim, "channel"), dask_array(store, point, kind))}, coords, attributes)


def _column(values: Any) -> np.ndarray:
    """Numbers as numbers (missing ones NaN), all else as objects."""
    if all(isinstance(value, int | float) for value in values):
        return np.asarray(values)
    if all(value is None or isinstance(value, int | float) for value in values):
        return np.asarray([np.nan if value is None else value for value in values])
    found = np.empty(len(values), dtype=object)
    found[:] = list(values)
    return found


def _read(url: str, plan: str, point: str, kind: RowKind, lo: int, hi: int, dtype: str) -> np.ndarray:
    from .store import ActivationStore

    store = ActivationStore.open(url)
    if store.plan_hash != plan:
        raise StoreError(f"{url} is another store now: make the array again")
    return store.rows(point, kind).read(lo, hi).astype(dtype, copy=False)


def _name(store: ActivationStore, point: str, kind: str) -> str:
    return f"modegap-{point}-{kind}-{store.content_hash().rpartition(':')[2][:16]}"


def _installed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StoreError(f"{module} is not installed ({error}): pip install '{package}'") from None
