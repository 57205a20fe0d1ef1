"""Rows of a store as batches: bounded memory, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .batch import ActivationBatch, PairedBatch
from .chunks import ChunkReader, Piece, Selection
from .devices import named
from .direct import FileSlot, Ring, loaded
from .machine import cores
from .prefetch import Slots, prefetched, torch_dtype
from .upload import Copies, CudaCopies, Staging

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, RowArray

Kind = Literal["tokens", "pooled"]
Progress = Callable[[int, int, int], None]
"""Called as progress(rows read, rows in all, bytes read), totals so far."""

_BATCH_BYTES = 16 << 20
_DEVICE_BATCH_BYTES, _FILE_BUFFER_BYTES = 128 << 20, 256 << 20
"""On a GPU a batch costs some launches and a wait, about a millisecond of Python whatever its size."""
_HOST_READERS, _DEVICE_READERS, _FILE_READERS = 2, 12, 14
_PREFETCH, _DEVICE_PREFETCH, _FILE_PREFETCH = 2, 4, 3
"""On a GPU's host so many readers have chunks of two buffers in hand while others are copied or computed on. KvikIO's
threads leave two cores to the consumer, and fewer, larger buffers leave it more time (docs/store-speed.md)."""
_MODALITY = {"text": 1, "image": 2, "audio": 3}


def rows_of(store: ActivationStore, point: str, kind: Kind | None) -> tuple[RowArray, Kind]:
    """The rows of a point and their kind; kind None takes token rows where the store has them."""
    if kind is None:
        info = store.points.get(point)
        kind = "pooled" if info is not None and info.rows == "pooled" else "tokens"
    return store.rows(point, kind), kind


def stream(
    store: ActivationStore,
    point: str,
    *,
    kind: Kind | None = "tokens",
    batch_rows: int | None = None,
    start: int = 0,
    stop: int | None = None,
    prefetch: int | None = None,
    device: str | torch.device | None = None,
    select: str | Sequence[str] | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    progress: Progress | None = None,
    readers: int | None = None,
    verify: bool = True,
) -> Iterator[ActivationBatch]:
    """Batches of a point's rows, in order, each of one scale, with sample, position and modality of its rows.

    Chunks are read and verified whole by `readers` threads, which end with the iterator (also when it is left
    early). `batch.x` is a view of one of `prefetch` + 1 page-aligned buffers that are reused: copy what must
    outlive the next step.

    On a CUDA device the buffers are there. Threads read into pinned memory, from where the rows are copied on a
    stream of their own, so that reading, copying and computing overlap. Whole chunks of local, uncompressed
    stores are verified by the GPU (compute capability 8.0, Triton) before a batch of them is handed over; others,
    and chunks of which only some rows are selected, by the host. Where KvikIO is installed (`pip install
    'modegap[gpu]'`) its threads, or GPUDirect Storage, read what the GPU can verify, and batches come with their
    `magnitudes`; it has one pool of threads a process, which grows to `readers`.

    Args:
        store: the store.
        point: hook point.
        kind: "tokens" or "pooled"; None takes token rows where the store has them.
        batch_rows: most rows a batch (default: one chunk, or as many small ones as make 16 MiB, 128 on a
            GPU); batches end at chunk boundaries where the scale changes.
        start: first row.
        stop: row after the last; None reads the complete samples from the first on.
        prefetch: buffers filled ahead, at least 1 (default: 2, on a GPU 4 of 128 MiB, with KvikIO 3 of 256).
        device: where x is put; None is the host. The columns stay on the host.
        select: "text", "image", "audio" or several: only rows of these modalities (token rows).
        samples: only rows of these samples: indices, or bool [samples].
        progress: called after every buffer as progress(rows, rows in all, bytes).
        readers: threads that read, at least 1 (default: 2, and no more than there are cores; for a GPU three
            quarters of the cores, up to 12, with KvikIO all but two, up to 14).
        verify: False skips the checksums, for a store that has just been verified.

    Raises:
        ValueError: bad arguments.
        StoreError: at the call, for unknown points; while iterating, for damaged or missing chunks.
        EngineError: while iterating, where intact rows arrive on the GPU as others, twice in a row.
    """
    rows, kind = rows_of(store, point, kind)
    stop = rows.n_valid_rows if stop is None else stop
    if not 0 <= start <= stop <= rows.shape[0]:
        raise ValueError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop <= {rows.shape[0]}")
    if batch_rows is not None and batch_rows < 1:
        raise ValueError(f"batch_rows: got {batch_rows}, expected at least 1")
    if prefetch is not None and prefetch < 1:
        raise ValueError(f"prefetch: got {prefetch}, expected at least 1")
    if select is not None and kind == "pooled":
        raise ValueError("select: pooled rows have no modality; use kind='tokens' or leave select out")
    if readers is not None and readers < 1:
        raise ValueError(f"readers: got {readers}, expected at least 1")
    selection = Selection(modalities=_modalities(select), samples=_sample_mask(samples, len(store.samples)))
    place = _place(device)
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    if batch_rows is None:
        size = _BATCH_BYTES if place is None else _DEVICE_BATCH_BYTES
        limit, most = max(rows.chunk_rows, size // row_bytes), _FILE_BUFFER_BYTES // row_bytes
    else:
        limit = most = batch_rows
    reader = ChunkReader(rows, point, start, stop, limit, selection, verify)
    if place is None:
        readers = min(_HOST_READERS, cores()) if readers is None else readers
        pieces = prefetched(reader.load, _slots(reader, None, _or(prefetch, _PREFETCH), readers))
    else:
        pieces = _to_gpu(reader, CudaCopies(place), most, prefetch, readers)
    return _batches(reader, pieces, progress)


def _to_gpu(
    reader: ChunkReader, copies: Copies, most: int, prefetch: int | None, readers: int | None
) -> Generator[Piece, None, None]:
    """Filled by KvikIO's threads where they can, up to `most` rows at a time, else by threads of Python."""
    available = cores()
    files = reader.files(copies, _or(readers, min(_FILE_READERS, max(available - 2, 1))))
    if files is None:
        readers = _or(readers, min(_DEVICE_READERS, max(available * 3 // 4, 1)))
        return prefetched(reader.load, _slots(reader, copies, _or(prefetch, _DEVICE_PREFETCH), readers))
    reader.gather(most)
    chunk, dtype = (reader.chunk_rows, reader.width), torch_dtype(reader.dtype)
    staging = Staging(2, lambda: copies.pinned(chunk, dtype))
    shape = reader.buffer_rows, reader.width
    make = partial(FileSlot, shape, reader.dtype, reader.chunk_rows, copies, staging)
    return loaded(reader.load, Ring(_or(prefetch, _FILE_PREFETCH) + 1, make, files))


def _slots(reader: ChunkReader, copies: Copies | None, prefetch: int, readers: int) -> Slots:
    shape = reader.buffer_rows, reader.width
    return Slots(
        prefetch + 1, shape, reader.dtype, readers=readers, part_rows=reader.chunk_rows, device=copies
    )


def _or(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def _place(device: str | torch.device | None) -> torch.device | None:
    """The GPU that is meant, by its number: threads have a current device of their own. None is the host."""
    place = named(device)
    if place.type == "cpu":
        return None
    if place.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            f"device: got {str(place)!r}, expected 'cpu' or an NVIDIA GPU; torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} of those"
        )
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def _batches(
    reader: ChunkReader, pieces: Generator[Piece, None, None], progress: Progress | None
) -> Iterator[ActivationBatch]:
    with closing(pieces) as filled:
        for piece in filled:
            yield from piece.batches
            if progress is not None:
                progress(piece.rows_done, reader.total_rows, piece.bytes_done)


def stream_pairs(
    store: ActivationStore,
    points: tuple[str, str],
    *,
    other: ActivationStore | None = None,
    kind: Kind | None = "tokens",
    batch_rows: int | None = None,
    **options: Any,
) -> Iterator[PairedBatch]:
    """The same rows at two points, for `CrossMoments`: batches as short as the shorter of both streams'.

    Args:
        store: store of the first point, and of the second unless `other` is given.
        points: (point of x, point of y).
        other: store of the second point.
        kind: as in `stream`; one kind for both.
        batch_rows: as in `stream`.
        **options: start, stop, prefetch, device, select, samples, readers, verify of `stream`, for both.

    Raises:
        ValueError: the points have different rows (say, streams of different tokens), or bad arguments.
        StoreError: as `stream`.
    """
    left_rows, kind = rows_of(store, points[0], kind)
    right_rows, _ = rows_of(other or store, points[1], kind)
    if left_rows.shape[0] != right_rows.shape[0]:
        raise ValueError(
            f"{points[0]!r} has {left_rows.shape[0]} {kind} rows and {points[1]!r} {right_rows.shape[0]}, "
            "expected the same rows; use kind='pooled', or points of one token stream"
        )
    if options.get("stop") is None:
        options["stop"] = min(left_rows.n_valid_rows, right_rows.n_valid_rows)
    left = stream(store, points[0], kind=kind, batch_rows=batch_rows, **options)
    right = stream(other or store, points[1], kind=kind, batch_rows=batch_rows, **options)
    return _pairs(left, right)


def _pairs(left: Iterator[ActivationBatch], right: Iterator[ActivationBatch]) -> Iterator[PairedBatch]:
    with closing(left), closing(right):  # type: ignore[type-var]  # generators, which have close()
        x, y = next(left, None), next(right, None)
        while x is not None and y is not None:
            n = min(len(x), len(y))
            yield PairedBatch(_head(x, n), _head(y, n))
            x = _tail(x, n) or next(left, None)
            y = _tail(y, n) or next(right, None)
        if x is not None or y is not None:
            raise ValueError("pair: one point has more selected rows than the other, expected the same rows")


def _head(batch: ActivationBatch, n: int) -> ActivationBatch:
    return batch if n == len(batch) else _cut(batch, slice(0, n), batch.start)


def _tail(batch: ActivationBatch, n: int) -> ActivationBatch | None:
    if n == len(batch):
        return None
    return _cut(batch, slice(n, len(batch)), batch.global_row(n))


def _cut(batch: ActivationBatch, part: slice, start: int) -> ActivationBatch:
    def of(column: torch.Tensor | None) -> torch.Tensor | None:
        return None if column is None else column[part]

    last = part.stop == len(batch)
    return ActivationBatch(
        batch.x[part],
        start,
        batch.point,
        batch.scale,
        of(batch.sample),
        of(batch.position),
        of(batch.modality),
        of(batch.row),
        batch.stop if last else batch.global_row(part.stop),
    )


def _modalities(select: str | Sequence[str] | None) -> np.ndarray | None:
    if select is None:
        return None
    names = [select] if isinstance(select, str) else list(select)
    unknown = [name for name in names if name not in _MODALITY]
    if unknown or not names:
        raise ValueError(f"select: got {unknown or names}, expected one or more of {', '.join(_MODALITY)}")
    return np.array([_MODALITY[name] for name in names], dtype=np.uint8)


def _sample_mask(samples: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray | None:
    if samples is None:
        return None
    given = np.asarray(samples)
    if given.dtype == np.bool_:
        if given.shape != (count,):
            raise ValueError(f"samples: got bool {given.shape}, expected ({count},)")
        return given
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"samples: got {given.dtype}, expected integers or bool")
    mask = np.zeros(count, dtype=np.bool_)
    if given.size:
        if given.min() < 0 or given.max() >= count:
            raise ValueError(f"samples: got {given.min()} to {given.max()}, expected 0 to {count - 1}")
        mask[given] = True
    return mask


def selection_of(
    select: str | Sequence[str] | None, samples: Sequence[int] | np.ndarray | None, count: int
) -> Selection:
    """The rows that `stream` takes under these options, in a store of `count` samples.

    Raises:
        ValueError: an unknown modality, or a sample that is not there.
    """
    return Selection(modalities=_modalities(select), samples=_sample_mask(samples, count))
