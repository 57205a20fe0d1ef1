"""A store from a file or folder of arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, LabelColumn, PointPlan, SampleRows, StorePlan, provenance
from modegap.stores.origin import VOLATILE

from .formats import BLOCK_BYTES, Rows, format_of, read_sidecar, sidecar_of
from .sources import opened, split

Progress = Callable[[int, int], None]


def import_store(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    points: Sequence[str] | None = None,
    samples: int | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    profile: Literal["raw", "sharded", "archive"] = "raw",
    width: int | None = None,
    raw_dtype: str = "float16",
    progress: Progress | None = None,
) -> ActivationStore:
    """Return the store at `out`, filled from the arrays of `source`; an interrupted import is resumed.

    Args:
        source: HDF5, npy, npz, safetensors or raw file, or a folder of npy or raw files.
        out: folder of the store.
        format: one of `FORMATS`, unless the suffix says it.
        points: names of the arrays to take; all [rows, width] unless given.
        samples: take the first so many samples (files of the published scripts are allocated in advance; rows
            that were never filled are zero).
        dtype: stored type. Values beyond fp16's range are stored scaled by a power of two.
        profile: layout of the store.
        width: features a row of a single raw file.
        raw_dtype: type of the values in it.
        progress: called as progress(samples done, samples).

    Raises:
        EngineError: the source cannot be read, or its arrays are not rows of the same samples.
        ValueError: bad arguments. StoreError: `out` holds something else, or the disk fails.
    """
    path = Path(source)
    kind = format_of(path, format)
    with opened(path, kind, width=width, dtype=raw_dtype) as (arrays, metadata):
        rows, lengths = split(arrays, None if points is None else tuple(points))
        beside = read_sidecar(sidecar_of(path, kind))
        count = _count(rows, lengths, samples)
        ids = _ids(beside, count, sidecar_of(path, kind))
        plan = StorePlan(
            points={name: _point(array, lengths.get(name), count, dtype) for name, array in rows.items()},
            sample_ids=ids,
            labels=_labels(beside, count),
            provenance=_origin(metadata, {"file": path.name, "format": kind}),
            profile=profile,
        )
        store = ActivationStore.create(out, plan, exist_ok=True)
        _fill(store, rows, lengths, progress)
    return store


def _count(rows: Mapping[str, Rows], lengths: Mapping[str, np.ndarray], samples: int | None) -> int:
    for name, length in lengths.items():
        if length.ndim != 1 or length.dtype.kind not in "iu" or int(length.sum()) != rows[name].shape[0]:
            raise EngineError(f"{name}.length does not add up to the {rows[name].shape[0]} rows of {name!r}")
    counts = {name: len(lengths[name]) if name in lengths else int(rows[name].shape[0]) for name in rows}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise EngineError(f"the arrays have different numbers of samples ({found}): choose with --points")
    count = next(iter(counts.values()))
    if samples is not None and not 1 <= samples <= count:
        raise ValueError(f"samples must be 1 to {count}, got {samples}")
    return count if samples is None else samples


def _ids(beside: Mapping[str, Any], count: int, where: Path) -> list[str]:
    given = beside.get("sample_ids")
    if given is None:
        return [str(index) for index in range(count)]
    if not isinstance(given, list) or len(given) < count:
        raise EngineError(
            f"sample_ids in {where} are not one for each of {count} samples: mend or remove them"
        )
    return given[:count]


def _labels(beside: Mapping[str, Any], count: int) -> dict[str, LabelColumn]:
    found = beside.get("labels", {})
    return {name: LabelColumn(entry["kind"], tuple(entry["values"][:count])) for name, entry in found.items()}


def _origin(metadata: Mapping[str, Any], imported: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of its origin, and that it was imported now."""
    now = provenance(imported=dict(imported))
    return now | {key: value for key, value in metadata.items() if key not in (*VOLATILE, "imported")}


def _point(
    array: Rows, length: np.ndarray | None, count: int, dtype: Literal["float16", "float32"]
) -> PointPlan:
    if length is None:
        return PointPlan(int(array.shape[1]), "pooled", dtype=dtype)
    return PointPlan(int(array.shape[1]), "tokens", length[:count], dtype)


def _fill(
    store: ActivationStore,
    rows: Mapping[str, Rows],
    lengths: Mapping[str, np.ndarray],
    progress: Progress | None,
) -> None:
    readers = {name: _Ahead(array) for name, array in rows.items()}
    ends = {name: np.cumsum(length) for name, length in lengths.items()}
    with store.writer() as writer:
        for sample in writer.todo.tolist():
            put = {}
            for name, reader in readers.items():
                if name in ends:
                    stop = int(ends[name][sample])
                    put[name] = SampleRows(tokens=reader.read(stop - int(lengths[name][sample]), stop))
                else:
                    put[name] = SampleRows(pooled=reader.read(sample, sample + 1)[0])
            writer.put(sample, put)
            if progress is not None:
                progress(sample + 1, len(store.samples))
    store.refresh()


class _Ahead:
    """Reads rows in blocks: one HDF5 access a row would take a millisecond each."""

    def __init__(self, array: Rows) -> None:
        self._array, self._start, self._block = array, 0, np.empty((0, array.shape[1]), array.dtype)
        self._size = max(1, BLOCK_BYTES // (int(array.shape[1]) * np.dtype(array.dtype).itemsize))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop`."""
        if not self._start <= start <= stop <= self._start + len(self._block):
            self._block = np.asarray(self._array[start : max(stop, start + self._size)])
            self._start = start
        return self._block[start - self._start : stop - self._start]
