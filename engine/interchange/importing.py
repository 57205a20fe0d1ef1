"""A store from a file or folder of arrays, or from a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, LabelColumn, PointPlan, SampleRows, StorePlan, provenance
from modegap.stores.origin import VOLATILE
from modegap.stores.plan import Profile, RowDtype
from modegap.stores.remote import at_home

from .comparing import check_same
from .content import Content, PointRows, split
from .formats import BLOCK_BYTES, Rows, source_of
from .sources import opened
from .tables import content_of

if TYPE_CHECKING:
    import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]

Progress = Callable[[int, int], None]
Ids = Literal["given", "numbers"]


def import_store(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    points: Sequence[str] | None = None,
    samples: int | None = None,
    ids: Ids = "given",
    dtype: RowDtype = "float16",
    profile: Profile = "raw",
    width: int | None = None,
    raw_dtype: str = "float16",
    progress: Progress | None = None,
) -> ActivationStore:
    """Return the store at `out`, filled from the arrays of `source`; an interrupted import is resumed.

    Rows that are there already are compared with those of the source first (`check_same`).

    Memory: a block of 16 MiB, or the rows of a sample if they are more, for each array (an npz member in
    Fortran order is read whole), and what a writer takes.

    Args:
        source: HDF5, npy, npz, safetensors or raw file; a folder of npy or raw files; a saved Hugging Face
            data set; any Zarr array or group; another store.
        out: folder of the store.
        format: one of `SOURCES`, unless the name or the content says it.
        points: names of the arrays to take; unless given, all [rows, width].
        samples: take the first so many samples (files of the published scripts are allocated in advance; rows
            that were never filled are zero). By default what the source says was filled, or all.
        ids: "given" takes the ids of the source where it has some, "numbers" counts.
        dtype: stored type. Values beyond fp16's range are stored scaled by a power of two.
        profile: layout of the store.
        width: features a row of a single raw file.
        raw_dtype: type of the values in it.
        progress: called as progress(samples done, samples).

    Raises:
        EngineError: the source cannot be read, its arrays are not rows of the same samples, or `out` has been
        filled from other rows.
        ValueError: bad arguments. StoreError: `out` holds something else, or the disk fails.
    """
    path = os.fspath(source)
    path = path if "://" in path else str(at_home(path))
    kind = source_of(path, format)
    if (width is not None or raw_dtype != "float16") and (kind != "raw" or Path(path).is_dir()):
        raise ValueError(
            f"--width and --raw_dtype describe a single raw file, and {path} is {kind}: leave them off"
        )
    with opened(path, kind, width=width, dtype=raw_dtype) as content:
        origin = {"file": Path(path).name, "format": kind}
        return _imported(content, out, origin, points, samples, ids, dtype, profile, progress)


def import_dataset(
    data: datasets.Dataset,
    out: str | os.PathLike[str],
    *,
    points: Sequence[str] | None = None,
    samples: int | None = None,
    ids: Ids = "given",
    dtype: RowDtype = "float16",
    profile: Profile = "raw",
    progress: Progress | None = None,
) -> ActivationStore:
    """Return the store at `out`, filled from the columns of a `datasets.Dataset`; resumed if interrupted.

    A column of lists of numbers is a point with pooled rows, one of lists of lists a point with token rows,
    and `<point>.ids`, `<point>.modality` are what stood at each token. A column `id` or `sample_id` has the
    sample ids; all others of one value an example are labels. Examples are read in order, in blocks of 16 MiB.

    Args:
        data: the data set; selections and shuffles are followed.
        out, points, samples, ids, dtype, profile, progress: as `import_store`.

    Raises:
        EngineError, ValueError, StoreError: as `import_store`.
    """
    split_name = str(getattr(data, "split", None) or "data set")
    origin = {"file": split_name, "format": "datasets"}
    return _imported(content_of(data), out, origin, points, samples, ids, dtype, profile, progress)


def _imported(
    content: Content,
    out: str | os.PathLike[str],
    origin: dict[str, str],
    points: Sequence[str] | None,
    samples: int | None,
    ids: Ids,
    dtype: RowDtype,
    profile: Profile,
    progress: Progress | None,
) -> ActivationStore:
    rows = split(content, None if points is None else tuple(points))
    count = _count(rows, content, samples)
    streams = _streams(rows, content.streams, count)
    plan = StorePlan(
        points={name: _point(found, count, dtype, streams.get(name)) for name, found in rows.items()},
        sample_ids=_ids(content.ids, count, ids),
        labels={name: _first(column, count, name) for name, column in content.labels.items()},
        provenance=_origin(content.metadata, origin),
        profile=profile,
    )
    store = ActivationStore.create(out, plan, exist_ok=True)
    _fill(store, rows, streams, origin["file"], progress)
    return store


def _count(rows: Mapping[str, PointRows], content: Content, samples: int | None) -> int:
    counts = {name: found.samples for name, found in rows.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise EngineError(f"the arrays have different numbers of samples ({found}): choose with --points")
    count = next(iter(counts.values()))
    if count < 1:
        raise EngineError(
            f"the arrays hold no samples ({', '.join(counts)}): import a source with a row for at least one"
        )
    if samples is not None and not 1 <= samples <= count:
        raise ValueError(f"samples must be 1 to {count}, got {samples}")
    if content.samples == 0 and samples is None:
        raise EngineError(
            "the source says that none of its samples were filled (n_samples_actual 0): fill it first, or say with "
            "--samples how many rows to take"
        )
    filled = content.samples if content.samples is not None and 1 <= content.samples <= count else count
    return filled if samples is None else samples


def _ids(given: Sequence[str] | None, count: int, ids: Ids) -> list[str]:
    if ids not in ("given", "numbers"):
        raise ValueError(f"ids must be 'given' or 'numbers', got {ids!r}")
    if given is None or ids == "numbers":
        return [str(index) for index in range(count)]
    if len(given) < count:
        raise EngineError(
            f"the source has {len(given)} sample ids for {count} samples: mend them, or count with --ids numbers"
        )
    first = list(given[:count])
    if len(set(map(str, first))) < count or not all(isinstance(one, str) and one for one in first):
        raise EngineError(
            "the sample ids of the source are not unique, non-empty texts: mend them, or count with --ids numbers"
        )
    return first


def _first(column: Sequence[Any] | LabelColumn, count: int, name: str) -> Sequence[Any] | LabelColumn:
    values = column.values if isinstance(column, LabelColumn) else column
    if len(values) < count:
        raise EngineError(f"label {name!r} has {len(values)} values for {count} samples: mend or remove it")
    if isinstance(column, LabelColumn):
        return LabelColumn(column.kind, tuple(values[:count]))
    return list(values[:count])


def _origin(metadata: Mapping[str, Any], imported: Mapping[str, str]) -> dict[str, Any]:
    """What the source says of its origin, and that it was imported now."""
    now = provenance(imported=dict(imported))
    return now | {key: value for key, value in metadata.items() if key not in (*VOLATILE, "imported")}


def _streams(rows: Mapping[str, PointRows], named: Mapping[str, str], count: int) -> dict[str, str]:
    """Return the stream of each point with token rows; the name in the source counts if the lengths agree."""
    found: dict[str, str] = {}
    first: dict[str, np.ndarray] = {}
    for name, point in rows.items():
        if point.lengths is not None:
            lengths, stream = point.lengths[:count], named.get(name, name)
            agrees = np.array_equal(first.setdefault(stream, lengths), lengths)
            found[name] = stream if agrees else name
    return found


def _point(rows: PointRows, count: int, dtype: RowDtype, stream: str | None) -> PointPlan:
    width = int(rows.any.shape[1])
    if rows.lengths is None:
        return PointPlan(width, "pooled", dtype=dtype)
    kind: Literal["tokens", "both"] = "tokens" if rows.pooled is None else "both"
    return PointPlan(width, kind, rows.lengths[:count], dtype, stream)


def _fill(
    store: ActivationStore,
    points: Mapping[str, PointRows],
    streams: Mapping[str, str],
    source: str,
    progress: Progress | None,
) -> None:
    readers = {name: _Reader(rows) for name, rows in points.items()}
    leaders = {stream: name for name, stream in reversed(list(streams.items()))}
    with store.writer() as writer:
        check_same(store, points, source)
        for sample in writer.todo.tolist():
            put = {name: reader.rows(sample) for name, reader in readers.items()}
            columns = {stream: readers[name].columns(sample) for stream, name in leaders.items()}
            writer.put(sample, put, columns)
            if progress is not None:
                progress(sample + 1, len(store.samples))
    store.refresh()


class _Reader:
    """Reads one point sample by sample."""

    def __init__(self, rows: PointRows) -> None:
        self._tokens = None if rows.tokens is None else _Ahead(rows.tokens)
        self._pooled = None if rows.pooled is None else _Ahead(rows.pooled)
        self._columns = [None if c is None else _Ahead(c) for c in (rows.ids, rows.modality)]
        self._lengths = rows.lengths
        self._ends = None if rows.lengths is None else np.cumsum(rows.lengths)

    def _range(self, sample: int) -> tuple[int, int]:
        assert self._ends is not None
        assert self._lengths is not None
        stop = int(self._ends[sample])
        return stop - int(self._lengths[sample]), stop

    def rows(self, sample: int) -> SampleRows:
        tokens = None if self._tokens is None else self._tokens.read(*self._range(sample))
        pooled = None if self._pooled is None else self._pooled.read(sample, sample + 1)[0]
        return SampleRows(tokens, pooled)

    def columns(self, sample: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        ids, modality = (None if c is None else c.read(*self._range(sample)) for c in self._columns)
        return ids, modality


class _Ahead:
    """Reads rows in blocks: one HDF5 access a row would take a millisecond each."""

    def __init__(self, array: Rows) -> None:
        self._array, self._start = array, 0
        self._block = np.empty((0, *array.shape[1:]), array.dtype)
        row = int(np.prod(array.shape[1:], dtype=np.int64)) * np.dtype(array.dtype).itemsize
        self._size = max(1, BLOCK_BYTES // max(row, 1))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows `start` to `stop`."""
        if not self._start <= start <= stop <= self._start + len(self._block):
            end = min(max(stop, start + self._size), int(self._array.shape[0]))
            self._block = self._block[:0].copy()  # not two blocks at a time
            self._block = np.asarray(self._array[start:end])
            self._start = start
        return self._block[start - self._start : stop - self._start]
