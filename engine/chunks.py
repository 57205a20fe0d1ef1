"""Chunk by chunk into a buffer, cut into batches: the reading half of `stream`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batch import ActivationBatch
from .prefetch import Slot, Slots

if TYPE_CHECKING:
    from modegap.stores import RowArray

_MODALITY_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which rows are wanted: modality codes (uint8) and samples (bool [samples]); None for all."""

    modalities: np.ndarray | None = None
    samples: np.ndarray | None = None

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return self.modalities is not None or self.samples is not None

    def mask(self, sample: np.ndarray, modality: np.ndarray | None) -> np.ndarray:
        """Bool [n]: which of these rows are wanted."""
        keep = np.ones(len(sample), dtype=np.bool_)
        if self.samples is not None:
            keep &= self.samples[sample]
        if self.modalities is not None:
            keep &= np.zeros_like(keep) if modality is None else np.isin(modality, self.modalities)
        return keep


@dataclass(slots=True)
class Piece:
    """What one buffer holds: batches over it, and how far the reading has come."""

    slot: Slot
    batches: list[ActivationBatch] = field(default_factory=list)
    rows_done: int = 0
    bytes_done: int = 0


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows lo to hi of consecutive chunks of one scale."""

    first: int
    last: int
    lo: int
    hi: int


class ChunkReader:
    """Reads rows `start` to `stop` of a `RowArray` in spans of whole chunks.

    A chunk is verified whole, so it is the unit of reading: larger batches take several chunks of one scale,
    smaller ones are cut from one.
    """

    def __init__(
        self, rows: RowArray, point: str, start: int, stop: int, batch_rows: int, selection: Selection
    ) -> None:
        """Nothing is read yet."""
        self._rows, self._point, self._selection = rows, point, selection
        self._start, self._stop, self._batch_rows = start, stop, batch_rows
        # With a selection every chunk is read, or left out, on its own.
        self._per_span = 1 if selection else max(batch_rows // rows.chunk_rows, 1)
        self._window = (0, 0)
        self._modality: np.ndarray | None = None
        self._scratch: np.ndarray | None = None

    @property
    def buffer_rows(self) -> int:
        """Rows a buffer must hold."""
        return min(self._per_span, max(self._rows.n_chunks, 1)) * self._rows.chunk_rows

    @property
    def width(self) -> int:
        """Channels."""
        return self._rows.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Stored dtype."""
        return self._rows.dtype

    @property
    def total_rows(self) -> int:
        """Rows from start to stop, selected or not."""
        return self._stop - self._start

    def load(self, slots: Slots) -> Iterator[Piece]:
        """Fill slot after slot; runs in the prefetch thread."""
        read = 0
        for span in self._spans():
            sample = self._rows.sample_of_row(span.lo, span.hi)
            modality = self._modality_of(span.lo, span.hi)
            keep = self._selection.mask(sample, modality) if self._selection else None
            done = span.hi - self._start
            if keep is not None and not keep.any():
                continue
            slot = slots.acquire()
            kept = self._read(span, slot, keep)
            read += (span.last - span.first) * self._rows.chunk_rows * self.width * self.dtype.itemsize
            slot.upload(kept)
            columns = (sample, self._rows.position(span.lo, span.hi), modality)
            yield Piece(slot, list(self._cut(span, slot, keep, kept, columns)), done, read)

    def _spans(self) -> Iterator[_Span]:
        size = self._rows.chunk_rows
        at = self._start
        while at < self._stop:
            first = last = at // size
            whole = at == first * size
            scale = self._rows.scale(first)
            last += 1
            while whole and last - first < self._per_span and (last + 1) * size <= self._stop:
                if self._rows.scale(last) != scale:
                    break
                last += 1
            stop = min(last * size, self._stop)
            yield _Span(first, last, at, stop)
            at = stop

    def _read(self, span: _Span, slot: Slot, keep: np.ndarray | None) -> int:
        """Read a span into the slot, compacted to the rows kept; returns how many."""
        some = keep is not None and not keep.all()
        size = self._rows.chunk_rows
        if some and self._scratch is None:
            self._scratch = np.empty((self.buffer_rows, self.width), self.dtype)
        target = self._scratch if some and self._scratch is not None else slot.host
        for chunk in range(span.first, span.last):
            at = (chunk - span.first) * size
            self._rows.chunk(chunk, out=target[at : at + size])
        offset = span.lo - span.first * size
        n = span.hi - span.lo
        if some and keep is not None:
            index = np.flatnonzero(keep) + offset
            # mode="clip" lets numpy write into `out` directly; the default buffers a copy.
            np.take(target, index, axis=0, out=slot.host[: len(index)], mode="clip")
            return len(index)
        if offset:
            slot.host[:n] = slot.host[offset : offset + n].copy()
        return n

    def _cut(
        self,
        span: _Span,
        slot: Slot,
        keep: np.ndarray | None,
        kept: int,
        columns: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    ) -> Iterator[ActivationBatch]:
        some = keep is not None and kept < span.hi - span.lo
        index = np.flatnonzero(keep) if some and keep is not None else None
        picked = [None if c is None else torch.from_numpy(c if index is None else c[index]) for c in columns]
        row = None if index is None else torch.from_numpy(index + span.lo)
        scale = self._rows.scale(span.first)
        limit = max(self._batch_rows, 1)
        for lo in range(0, kept, limit):
            hi = min(lo + limit, kept)
            sample, position, modality = (None if c is None else c[lo:hi] for c in picked)
            after = span.hi if hi == kept else span.lo + hi if row is None else int(row[hi])
            yield ActivationBatch(
                x=slot.rows[lo:hi],
                start=span.lo + lo if row is None else int(row[lo]),
                point=self._point,
                scale=scale,
                sample=sample,
                position=position,
                modality=modality,
                row=None if row is None else row[lo:hi],
                stop=after,
            )

    def _modality_of(self, lo: int, hi: int) -> np.ndarray | None:
        """Modality of rows lo to hi; read in windows, since a read verifies whole chunks of the column."""
        if not (self._window[0] <= lo and hi <= self._window[1]):
            stop = min(max(lo + _MODALITY_WINDOW, hi), self._stop)
            self._modality, self._window = self._rows.modality(lo, stop), (lo, stop)
        if self._modality is None:
            return None
        return self._modality[lo - self._window[0] : hi - self._window[0]]
