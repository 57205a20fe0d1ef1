"""A store's rows as a file or folder of arrays."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, RowArray, aligned_empty
from modegap.stores.remote import at_home

from .formats import (
    BLOCK_BYTES,
    COLUMNS,
    IDS,
    LENGTH,
    MODALITY,
    POOLED,
    Planned,
    as_json,
    format_of,
    sidecar_of,
)
from .sinks import write_arrays
from .tables import chosen, write_dataset

Progress = Callable[[int, int], None]
Kinds = Literal["pooled", "tokens", "both"]


def export_store(
    store: ActivationStore,
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    points: Sequence[str] | None = None,
    rows: Kinds | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the true values of a store's rows to `out`, ids and labels to a JSON file; return `out`.

    HDF5 holds float32 and, of pooled rows, is the layout of the published scripts; all others hold the stored
    dtype, or float32 for a point with scaled chunks. Token rows come with lengths, token ids and modality.
    With `rows="both"`, or with `import_store` of what they hold, nothing of a store is lost but its chunks.
    `out` appears complete or not at all. Memory: one block of 16 MiB.

    Args:
        store: a complete store.
        out: file, or for npy, raw and datasets a folder.
        format: one of `FORMATS`, unless the suffix says it.
        points: names; all that have these rows unless given.
        rows: "pooled", "tokens" or "both" (all that each point has; pooled rows then are `<point>.pooled`
            where there are token rows too); pooled unless given, where the store has them.
        progress: called as progress(bytes done, bytes), for datasets in samples.

    Raises:
        EngineError: `out` exists, the store is incomplete, no point has such rows, or a package is missing.
        StoreError: an unknown point, or a damaged chunk. ValueError: bad arguments.
    """
    if "://" in os.fspath(out):
        raise ValueError(
            f"{os.fspath(out)} is a URL, and exports go to files: export to a path, then copy it there"
        )
    path = at_home(out)
    kind = format_of(path, format)
    if kind in ("npy", "raw", "datasets") and path.suffix:
        raise ValueError(f"{kind} goes to a folder: leave the suffix off {path}")
    beside = sidecar_of(path, kind)
    _check_free(path, beside)
    if store.n_complete < len(store.samples):
        raise EngineError(
            f"{store.n_complete} of {len(store.samples)} samples of {store.path} are complete: resume it"
        )
    arrays = _arrays(store, points, rows, kind)
    planned, sources = _planned(arrays, wide=kind == "hdf5")
    streams = {name: store.points[name].stream for name in arrays if name in store.points}
    described: dict[str, Any] = {
        "format": kind,
        "arrays": {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in planned.items()},
        "streams": {name: stream for name, stream in streams.items() if name + LENGTH in planned},
        "sample_ids": store.samples,
        "labels": {name: {"kind": c.kind, "values": list(c.values)} for name, c in store.labels.items()},
        "provenance": store.provenance,
    }
    part = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part, path):
            _check_free(path, beside)
            _remove(part)
            _check_space(path, sum(array.nbytes for array in planned.values()))
            try:
                if kind == "datasets":
                    write_dataset(store, part, arrays, None if rows == "both" else rows, progress)
                else:
                    write_arrays(part, kind, planned, _reporting(planned, sources, progress), store)
                target = part / beside.name if beside.parent == path else beside
                target.write_text(as_json(described))
                part.rename(path)
            except BaseException:
                _remove(part)
                if beside.parent != path:
                    beside.unlink(missing_ok=True)
                raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise EngineError(
            f"cannot write {path} ({reason}): nothing of it was kept; free some space there, or choose another path"
        ) from None
    return path


def _check_free(*paths: Path) -> None:
    for taken in paths:
        if taken.exists():
            raise EngineError(f"{taken} exists already: choose another path, or remove it")


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise EngineError(
            f"{path} needs {needed} bytes, {free} are free there: free some space, or choose another path"
        )


@contextmanager
def _alone(part: Path, path: Path) -> Iterator[None]:
    """Keep other processes from exporting to the same place: they would write to, and rename, the same `part`.

    Raises:
        EngineError: one is at it.
    """
    lock = part.with_suffix(".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Some network file systems have no locks; there nothing is locked.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(descriptor).st_nlink > 0  # else it was the last one's, who has just ended
        except BlockingIOError:
            mine = False
        except OSError:
            mine = True
        if not mine:
            raise EngineError(f"another process is exporting to {path}: wait for it, or choose another path")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _arrays(
    store: ActivationStore, points: Sequence[str] | None, rows: Kinds | None, kind: str
) -> dict[str, RowArray]:
    """Return the rows to write by the name of their array."""
    if rows != "both":
        arrays = chosen(store, points, rows)
    elif kind == "datasets":
        raise ValueError("a data set has either rows of a point: choose rows 'pooled' or 'tokens'")
    else:
        arrays = {}
        for name in store.points if points is None else points:
            one = chosen(store, [name], None)[name]
            both = store.points[name].rows == "both"
            arrays |= {name: store.rows(name), name + POOLED: one} if both else {name: one}
    for name in store.points:
        taken = name.endswith((*COLUMNS, POOLED)) or (kind == "hdf5" and name == "sample_ids")
        if name in arrays and taken:
            raise ValueError(f"point {name!r} has a name that means something else in a file: leave it out")
    return arrays


Source = Callable[[], Iterator[np.ndarray]]


def _planned(arrays: dict[str, RowArray], *, wide: bool) -> tuple[dict[str, Planned], dict[str, Source]]:
    planned: dict[str, Planned] = {}
    sources: dict[str, Source] = {}
    for name, rows in arrays.items():
        scaled = any(rows.scale(chunk) != 1.0 for chunk in range(rows.n_chunks))
        dtype: np.dtype = np.dtype(np.float32) if wide or scaled else rows.dtype
        planned[name] = Planned(rows.shape, dtype)
        sources[name] = lambda rows=rows, dtype=dtype: _blocks(rows, dtype)  # type: ignore[misc]
        lengths = rows.lengths()
        if lengths is not None:
            sizes = {LENGTH: len(lengths), IDS: rows.shape[0], MODALITY: rows.shape[0]}
            planned |= {name + suffix: Planned((n,), COLUMNS[suffix]) for suffix, n in sizes.items()}
            sources[name + LENGTH] = lambda lengths=lengths: iter((lengths,))  # type: ignore[misc]
            sources[name + IDS] = lambda read=rows.token_ids, n=rows.shape[0]: _column(read, n)  # type: ignore[misc]
            sources[name + MODALITY] = lambda read=rows.modality, n=rows.shape[0]: _column(read, n)  # type: ignore[misc]
    return planned, sources


def _blocks(rows: RowArray, dtype: np.dtype) -> Iterator[np.ndarray]:
    size = max(1, BLOCK_BYTES // (rows.shape[1] * dtype.itemsize))
    # Whole chunks, so that each is read and checked once, where they fit.
    size = max(size - size % rows.chunk_rows, min(size, rows.chunk_rows))
    buffer = aligned_empty((size, rows.shape[1]), dtype)
    for start in range(0, rows.shape[0], size):
        stop = min(start + size, rows.shape[0])
        yield rows.read(start, stop, buffer[: stop - start])


def _column(read: Callable[[int, int], np.ndarray | None], n_rows: int) -> Iterator[np.ndarray]:
    for start in range(0, n_rows, BLOCK_BYTES // 4):
        found = read(start, min(start + BLOCK_BYTES // 4, n_rows))
        assert found is not None
        yield found


def _reporting(
    planned: dict[str, Planned], sources: dict[str, Source], progress: Progress | None
) -> Callable[[str], Iterator[np.ndarray]]:
    total, done = sum(array.nbytes for array in planned.values()), 0

    def blocks(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        for block in sources[name]():
            yield block
            done += block.nbytes
            if progress is not None:
                progress(done, total)

    return blocks


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
