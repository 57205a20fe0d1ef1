"""Hugging Face `datasets`: a store as a data set, without copying it, and a data set's columns as a store.

A sample is an example: `id`, the labels, and for each point a list of numbers (pooled rows) or a list of such
lists (token rows), the latter with `<point>.ids` and `<point>.modality`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, LabelColumn, RowArray

from .content import Content
from .formats import BLOCK_BYTES, IDS, LENGTH, MODALITY, Rows, optional

if TYPE_CHECKING:
    import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]

Kind = Literal["pooled", "tokens"]

_NEED = "Hugging Face data sets need datasets"
_IDS = ("id", "sample_id", "sample_ids")
_SAMPLES_A_SHARD = 256


def library() -> Any:
    """Import `datasets`.

    Raises:
        EngineError: it is not installed.
    """
    return optional("datasets", _NEED, "datasets")


def chosen(store: ActivationStore, points: Sequence[str] | None, rows: Kind | None) -> dict[str, RowArray]:
    """Return the rows of the points named, else of all that have such rows; pooled unless given, where there are.

    Raises:
        EngineError: no point has such rows. StoreError: an unknown point, or one without such rows.
        ValueError: other rows.
    """
    if rows not in (None, "pooled", "tokens"):
        raise ValueError(f"rows must be 'pooled' or 'tokens', got {rows!r}")
    if points is not None:
        only = {name for name, info in store.points.items() if info.rows == "tokens"}
        kinds = {name: store.rows(name, rows or ("tokens" if name in only else "pooled")) for name in points}
    else:
        pooled = any(info.rows != "tokens" for info in store.points.values())
        kind: Kind = rows or ("pooled" if pooled else "tokens")
        kinds = {
            name: store.rows(name, kind) for name, info in store.points.items() if info.rows in (kind, "both")
        }
    if not kinds:
        raise EngineError(f"no point of {store.path} has {rows} rows: choose the others with --rows")
    return kinds


def as_dataset(
    store: ActivationStore,
    *,
    points: Sequence[str] | None = None,
    rows: Kind | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """Return a view of the complete samples of a store; no row is read before it is asked for.

    With `streaming` an `IterableDataset` with declared features, which reads chunk after chunk and can be
    divided among the workers of a `DataLoader`. Without, a `Dataset` of ids and labels, from which an example
    (or a slice, or a batch of `map`) reads its rows; `select`, `shuffle` and `filter` move no rows. Either way
    rows are checked as `RowArray.read` checks them, and are numpy arrays of true values; memory is a chunk
    for each point and what was asked for.

    Args:
        store: the store; one behind a URL is opened again by each worker.
        points: names; all that have such rows unless given.
        rows: "pooled" or "tokens"; pooled unless given, where the store has them.
        streaming: which of the two.

    Raises:
        EngineError: `datasets` is not installed, or no point has such rows.
        StoreError: an unknown point; while reading, damaged chunks. ValueError: other rows.
    """
    hub = library()
    arrays = chosen(store, points, rows)
    check_columns(store, arrays)
    complete = np.flatnonzero(store.complete_samples()).tolist()
    # A label or a point may have that name; none can begin with two underscores.
    at = "__index__" if "index" in (*store.labels, *arrays) else "index"
    view = _View(os.fspath(str(store.path)), tuple(arrays), rows, at)
    if streaming:
        shards = [complete[at : at + _SAMPLES_A_SHARD] for at in range(0, len(complete), _SAMPLES_A_SHARD)]
        return hub.IterableDataset.from_generator(
            view.examples, features=features_of(store, arrays), gen_kwargs={"shards": shards}
        )
    columns: dict[str, list[Any]] = {at: complete, "id": [store.samples[k] for k in complete]}
    columns |= {name: [column.values[k] for k in complete] for name, column in store.labels.items()}
    return hub.Dataset.from_dict(columns).with_transform(view)


def check_columns(store: ActivationStore, arrays: Mapping[str, RowArray]) -> None:
    """Return if ids, labels and rows have names of their own, as the columns of a data set must.

    Raises:
        ValueError: a point and a label are called the same.
    """
    names = {"id", *store.labels}
    for point, rows in arrays.items():
        columns = [point] if rows.lengths() is None else [point, point + IDS, point + MODALITY]
        for name in names.intersection(columns):
            raise ValueError(
                f"column {name!r} would hold both rows of {point!r} and {'ids' if name == 'id' else 'a label'}: "
                f"choose the other points"
            )


def features_of(store: ActivationStore, arrays: Mapping[str, RowArray]) -> Any:
    """Return the `datasets.Features` of a store's samples."""
    hub = library()
    many = getattr(hub, "List", None) or hub.Sequence
    found: dict[str, Any] = {"id": hub.Value("string")}
    for name, column in store.labels.items():
        whole = not any(isinstance(value, float) for value in column.values)
        number = "int64" if whole else "float64"
        found[name] = hub.Value(number if column.kind == "number" else "string")
    for name, rows in arrays.items():
        row = many(hub.Value(value_dtype(rows).name), length=rows.shape[1])
        if rows.lengths() is None:
            found[name] = row
        else:
            found[name] = many(row)
            found |= {name + IDS: many(hub.Value("int32")), name + MODALITY: many(hub.Value("uint8"))}
    return hub.Features(found)


def value_dtype(rows: RowArray) -> np.dtype:
    """Return float32 if a chunk is scaled, else the stored dtype."""
    committed = np.flatnonzero(rows.committed).tolist()
    return np.dtype(np.float32) if any(rows.scale(k) != 1.0 for k in committed) else rows.dtype


class _View:
    """Reads samples by index; opens the store when first used, in every process anew."""

    def __init__(self, path: str, points: tuple[str, ...], rows: Kind | None, at: str = "index") -> None:
        """Read the points of the store at `path`; column `at` of a batch has the samples' indices."""
        self._path, self._points, self._rows, self._at = path, points, rows, at
        self._opened: tuple[ActivationStore, dict[str, RowArray], dict[str, np.dtype]] | None = None

    def __getstate__(self) -> tuple[str, tuple[str, ...], Kind | None, str]:
        return self._path, self._points, self._rows, self._at

    def __setstate__(self, state: tuple[str, tuple[str, ...], Kind | None, str]) -> None:
        self._path, self._points, self._rows, self._at = state
        self._opened = None

    def _open(self) -> tuple[ActivationStore, dict[str, RowArray], dict[str, np.dtype]]:
        if self._opened is None:
            store = ActivationStore.open(self._path)
            arrays = chosen(store, self._points, self._rows)
            self._opened = store, arrays, {name: value_dtype(rows) for name, rows in arrays.items()}
        return self._opened

    def sample(self, index: int) -> dict[str, np.ndarray]:
        """Return the rows of a sample at every point, and the columns of its tokens."""
        _, arrays, dtypes = self._open()
        found: dict[str, np.ndarray] = {}
        for name, rows in arrays.items():
            start, stop = rows.sample_range(index)
            values = rows.read(start, stop, np.empty((stop - start, rows.shape[1]), dtypes[name]))
            if rows.lengths() is None:
                found[name] = values[0]
            else:
                ids, modality = rows.token_ids(start, stop), rows.modality(start, stop)
                assert ids is not None
                assert modality is not None
                found |= {name: values, name + IDS: ids, name + MODALITY: modality}
        return found

    def examples(self, shards: list[list[int]]) -> Iterator[dict[str, Any]]:
        """Yield the samples of some shards, as `IterableDataset.from_generator` asks for them."""
        store, _, _ = self._open()
        for shard in shards:
            for index in shard:
                labels = {name: column.values[index] for name, column in store.labels.items()}
                yield {"id": store.samples[index], **labels, **self.sample(index)}

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Return a batch of ids and labels with the rows of its samples, as `Dataset.with_transform` asks."""
        found = {name: list(values) for name, values in batch.items()}
        for index in batch.get(self._at, []):
            for name, values in self.sample(int(index)).items():
                found.setdefault(name, []).append(values)
        return found


def write_dataset(
    store: ActivationStore, path: Path, arrays: Mapping[str, RowArray], rows: Kind | None, progress: Any
) -> None:
    """Write all samples to a folder that `datasets.load_from_disk` maps into memory.

    Raises:
        EngineError: `datasets` is not installed. OSError: the disk is full or read-only.
    """
    hub = library()
    check_columns(store, arrays)
    arrow_writer = optional("datasets.arrow_writer", _NEED, "datasets")

    view = _View(str(store.path), tuple(arrays), rows)
    count = len(store.samples)
    largest = max(sum(_sample_bytes(r) for r in arrays.values()), 1)
    flat = path.with_name(f"{path.name}.samples")
    shown = not hub.are_progress_bars_disabled()
    hub.disable_progress_bars()
    try:
        batch = max(1, min(1000, BLOCK_BYTES // largest))
        with arrow_writer.ArrowWriter(
            features=features_of(store, arrays), path=str(flat), writer_batch_size=batch
        ) as writer:
            for index, example in enumerate(view.examples([list(range(count))])):
                writer.write(example)
                if progress is not None:
                    progress(index + 1, count)
            writer.finalize()
        hub.Dataset.from_file(str(flat)).save_to_disk(str(path))
    finally:
        # A data set maps it into memory, which on Linux outlives the name.
        flat.unlink(missing_ok=True)
        if shown:
            hub.enable_progress_bars()


def _sample_bytes(rows: RowArray) -> int:
    lengths = rows.lengths()
    most = 1 if lengths is None or not len(lengths) else int(lengths.max())
    return most * rows.shape[1] * 4


def opened_dataset(path: str) -> Content:
    """Return the columns of a data set that `save_to_disk` wrote.

    Raises:
        EngineError: `datasets` is not installed, or it is a dictionary of several splits.
    """
    hub = library()
    found = hub.load_from_disk(path)
    if not isinstance(found, hub.Dataset):
        raise EngineError(
            f"{path} holds several splits ({', '.join(found)}): import one of the folders in it instead"
        )
    return content_of(found)


def content_of(data: Any) -> Content:
    """Return the columns of a `datasets.Dataset`: lists of numbers are rows, all else is ids and labels.

    Raises:
        EngineError: a column of numbers has rows of different widths, or missing ones.
    """
    arrays: dict[str, Rows] = {}
    labels: dict[str, Sequence[Any] | LabelColumn] = {}
    ids: list[str] | None = None
    plain = data.with_format(None)
    for name in data.column_names:
        kind = _nesting(plain, name)
        if kind == 0:
            values = list(plain[name])
            if name in _IDS and ids is None:
                ids = [str(value) for value in values]
            elif name != "index":
                labels[name] = _named_classes(plain.features[name], values)
        elif kind == 1 and name.endswith((IDS, MODALITY)):
            arrays[name] = ListRows(plain, name, nested=False)
        else:
            arrays[name] = ListRows(plain, name, nested=kind > 1)
            if kind > 1:
                arrays[name + LENGTH] = arrays[name].lengths  # type: ignore[attr-defined]
    return Content(arrays, {}, ids, labels)


def _named_classes(feature: Any, values: list[Any]) -> list[Any]:
    names = getattr(feature, "names", None)
    return values if names is None else [None if v is None or v < 0 else names[v] for v in values]


def _nesting(data: Any, name: str) -> int:
    """Return how many lists are around the numbers of a column; 0 for one value an example."""
    pa = optional("pyarrow", _NEED, "datasets")

    kind = data.features.arrow_schema.field(name).type
    depth = 0
    while True:
        if isinstance(kind, pa.ExtensionType):
            kind = kind.storage_type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        kind, depth = kind.value_type, depth + 1
    if depth > 2 or (depth and not (pa.types.is_floating(kind) or pa.types.is_integer(kind))):
        raise EngineError(f"column {name!r} is no rows of numbers: leave it out with remove_columns")
    return depth


class ListRows:
    """A column of lists as rows: one an example, or with `nested` as many as its list has."""

    def __init__(self, data: Any, name: str, *, nested: bool) -> None:
        """Find the width, and (from the offsets alone) how many rows each example has."""
        self._data, self._name = data.with_format("arrow"), name
        self._flat = name.endswith((IDS, MODALITY)) and not nested
        self._nested = nested
        self.lengths = self._lengths()
        first = next((int(k) for k in np.flatnonzero(self.lengths)), None)
        values, sizes = self._nothing() if first is None else self._values(first, first + 1)
        self.dtype = values.dtype
        rows = int(self.lengths.sum())
        self.shape: tuple[int, ...] = (rows,) if self._flat else (rows, max([1, *filter(None, sizes)]))
        self._ends = np.cumsum(self.lengths)

    def _nothing(self) -> tuple[np.ndarray, set[int]]:
        """Return what `_values` does, from the type of the column alone: its lists are empty."""
        pa = optional("pyarrow", _NEED, "datasets")

        kind = self._data.features.arrow_schema.field(self._name).type
        kind = kind.storage_type if isinstance(kind, pa.ExtensionType) else kind
        sizes: set[int] = set()
        while hasattr(kind, "value_type"):
            sizes = {kind.list_size} if pa.types.is_fixed_size_list(kind) else set()
            kind = kind.value_type
        return np.empty(0, kind.to_pandas_dtype()), sizes

    def _lengths(self) -> np.ndarray:
        pc = optional("pyarrow.compute", _NEED, "datasets")

        if not (self._nested or self._flat):
            return np.ones(len(self._data), np.int64)
        counts = [np.zeros(0, np.int64)]
        for at in range(0, len(self._data), 1000):
            column = self._column(at, at + 1000)
            counts.append(pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64))
        return np.concatenate(counts)

    def _column(self, start: int, stop: int) -> Any:
        pa = optional("pyarrow", _NEED, "datasets")

        column = self._data[start : min(stop, len(self._data))].column(self._name).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if isinstance(column.type, pa.ExtensionType):
            column = column.storage
        if column.null_count:
            raise EngineError(f"column {self._name!r} has examples without a value: filter them out first")
        return column

    def _values(self, start: int, stop: int) -> tuple[np.ndarray, set[int]]:
        """Return the numbers of some examples, flat, and how many there are in the lists they are in."""
        pc = optional("pyarrow.compute", _NEED, "datasets")
        column = self._column(start, stop)
        sizes: set[int] = set()
        while hasattr(column, "flatten") and hasattr(column.type, "value_type"):
            sizes = set(pc.unique(pc.list_value_length(column)).to_pylist())
            column = column.flatten()
        found: np.ndarray = column.to_numpy(zero_copy_only=False)
        return found, sizes

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows."""
        start, stop, _ = rows.indices(self.shape[0])
        if stop <= start:
            return np.empty((0, *self.shape[1:]), self.dtype)
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, stop, side="left")) + 1
        begin = int(self._ends[first - 1]) if first else 0
        count = int(self._ends[last - 1]) - begin
        values, sizes = self._values(first, last)
        if not self._flat and sizes - {self.shape[1]}:
            raise EngineError(
                f"column {self._name!r} has rows of {sorted(sizes, key=str)} numbers in examples {first} to "
                f"{last - 1}, expected {self.shape[1]}: pad them, or leave the column out"
            )
        return values.reshape(count, *self.shape[1:])[start - begin : stop - begin]
