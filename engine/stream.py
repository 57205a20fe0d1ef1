"""Rows of a store as batches: bounded memory, read ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .batch import ActivationBatch, PairedBatch
from .chunks import ChunkReader, Selection
from .prefetch import Slots, prefetched

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, RowArray

Kind = Literal["tokens", "pooled"]
Progress = Callable[[int, int, int], None]
"""Called as progress(rows read, rows in all, bytes read), totals so far."""

_BATCH_BYTES = 16 << 20
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
    prefetch: int = 2,
    device: str | torch.device | None = None,
    select: str | Sequence[str] | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    progress: Progress | None = None,
) -> Iterator[ActivationBatch]:
    """Batches of a point's rows, in order, each of one scale, with sample, position and modality of its rows.

    Chunks are read and verified whole, `prefetch` of them ahead, in one thread that ends with the iterator
    (also when it is left early). `batch.x` is a view of one of `prefetch` + 1 page-aligned buffers that are
    reused: copy what must outlive the next step. On a CUDA device the buffers are pinned and copied on their
    own stream, so that reading, copying and computing overlap.

    Args:
        store: the store.
        point: hook point.
        kind: "tokens" or "pooled"; None takes token rows where the store has them.
        batch_rows: most rows a batch (default: one chunk, or as many small ones as make 16 MiB); batches end
            at chunk boundaries where the scale changes.
        start: first row.
        stop: row after the last; None reads the complete samples from the first on.
        prefetch: buffers filled ahead, at least 1.
        device: where x is put; None is the host. The columns stay on the host.
        select: "text", "image", "audio" or several: only rows of these modalities (token rows).
        samples: only rows of these samples: indices, or bool [samples].
        progress: called after every buffer as progress(rows, rows in all, bytes).

    Raises:
        ValueError: bad arguments.
        StoreError: at the call, for unknown points; while iterating, for damaged or missing chunks.
    """
    rows, kind = rows_of(store, point, kind)
    stop = rows.n_valid_rows if stop is None else stop
    if not 0 <= start <= stop <= rows.shape[0]:
        raise ValueError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop <= {rows.shape[0]}")
    if batch_rows is not None and batch_rows < 1:
        raise ValueError(f"batch_rows: got {batch_rows}, expected at least 1")
    if prefetch < 1:
        raise ValueError(f"prefetch: got {prefetch}, expected at least 1")
    if select is not None and kind == "pooled":
        raise ValueError("select: pooled rows have no modality; use kind='tokens' or leave select out")
    selection = Selection(modalities=_modalities(select), samples=_sample_mask(samples, len(store.samples)))
    if batch_rows is None:
        batch_rows = max(rows.chunk_rows, _BATCH_BYTES // (rows.shape[1] * rows.dtype.itemsize))
    reader = ChunkReader(rows, point, start, stop, batch_rows, selection)
    place = None if device is None or torch.device(device).type == "cpu" else torch.device(device)
    return _batches(reader, prefetch, place, progress)


def _batches(
    reader: ChunkReader, prefetch: int, device: torch.device | None, progress: Progress | None
) -> Iterator[ActivationBatch]:
    slots = Slots(prefetch + 1, reader.buffer_rows, reader.width, reader.dtype, device)
    with closing(prefetched(reader.load, slots)) as filled:
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
        **options: start, stop, prefetch, device, select, samples of `stream`, for both.

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
