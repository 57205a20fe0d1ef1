"""Chunk by chunk into a buffer, cut into batches: the reading half of `stream`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batch import ActivationBatch
from .direct import Chunks, FileSlot, Loading, Ring
from .files import Files
from .prefetch import Part, Slot, Slots
from .upload import Copies

if TYPE_CHECKING:
    from modegap.stores import RowArray

_MODALITY_WINDOW = 1 << 20
_LOOKED_AT = 4
"""Batches of a buffer whose magnitudes are looked for ahead; of small ones their consumer does that as fast."""


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
    """What one buffer holds once its parts are filled: batches over it, made then, and how far the reading has come."""

    slot: Slot
    parts: Sequence[Part] = ()
    loading: Loading | None = None
    batches: Iterator[ActivationBatch] = field(default_factory=lambda: iter(()))
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
        self,
        rows: RowArray,
        point: str,
        start: int,
        stop: int,
        batch_rows: int,
        selection: Selection,
        verify: bool = True,
    ) -> None:
        """Nothing is read yet."""
        self._rows, self._point, self._selection = rows, point, selection
        self._start, self._stop, self._batch_rows = start, stop, max(batch_rows, 1)
        self._per_span = self._first_span = max(batch_rows // rows.chunk_rows, 1)
        self._window = (0, 0)
        self._modality: np.ndarray | None = None
        self._verify = verify
        self._words = self.chunk_rows * self.width * self.dtype.itemsize % 4 == 0
        self._scratch = threading.local()

    @property
    def buffer_rows(self) -> int:
        """Rows a buffer must hold."""
        return min(self._per_span, max(self._rows.n_chunks, 1)) * self._rows.chunk_rows

    def gather(self, rows: int) -> None:
        """Read up to so many rows at a time after the first batch, where that is more than one batch."""
        self._per_span = max(self._per_span, rows // self._rows.chunk_rows)

    @property
    def chunk_rows(self) -> int:
        """Rows that are read at a time."""
        return self._rows.chunk_rows

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

    def load(self, slots: Slots | Ring) -> Iterator[Piece]:
        """Plan slot after slot: parts for threads to read, or, in a ring, what is being read already."""
        read = 0
        for span in self._spans():
            index = self._picked_of(span) if self._selection else None
            if index is not None and not len(index):
                continue
            slot, parts, loading = self._begin(span, slots, index)
            chunks = span.last - span.first if index is None else len(parts)
            read += chunks * self._rows.chunk_rows * self.width * self.dtype.itemsize
            try:
                # After the rows: the first read of a modality takes as long as a buffer, which is being read meanwhile.
                columns = (
                    self._rows.sample_of_row(span.lo, span.hi),
                    self._rows.position(span.lo, span.hi),
                    self._modality_of(span.lo, span.hi),
                )
            except BaseException:
                if loading is not None:
                    loading.wait()  # nobody else knows of it
                raise
            batches = self._cut(span, slot, index, columns)
            yield Piece(slot, parts, loading, batches, span.hi - self._start, read)

    def _picked_of(self, span: _Span) -> np.ndarray | None:
        """Which rows of a span are selected; None for all."""
        keep = self._selection.mask(
            self._rows.sample_of_row(span.lo, span.hi), self._modality_of(span.lo, span.hi)
        )
        return None if keep.all() else np.flatnonzero(keep)

    def _spans(self) -> Iterator[_Span]:
        size = self._rows.chunk_rows
        at, most = self._start, self._first_span
        while at < self._stop:
            first = last = at // size
            whole = at == first * size
            scale = self._rows.scale(first)
            last += 1
            while whole and last - first < most and (last + 1) * size <= self._stop:
                if self._rows.scale(last) != scale:
                    break
                last += 1
            stop = min(last * size, self._stop)
            yield _Span(first, last, at, stop)
            at, most = stop, self._per_span

    def _begin(
        self, span: _Span, slots: Slots | Ring, index: np.ndarray | None
    ) -> tuple[Slot, list[Part], Loading | None]:
        size = self._rows.chunk_rows
        if isinstance(slots, Ring):
            whole = slots.acquire()
            begin, count, limit = span.lo - span.first * size, span.hi - span.lo, self._batch_rows
            batches = [(begin + lo, begin + min(lo + limit, count)) for lo in range(0, count, limit)]
            whole.look_at(batches if len(batches) <= _LOOKED_AT else ())
            return whole, [], self._loading(span, whole, slots.files)
        slot = slots.acquire()
        return slot, list(self._parts(span, slot, index)), None

    def _parts(self, span: _Span, slot: Slot, index: np.ndarray | None) -> Iterator[Part]:
        """What fills a slot, a chunk each; a chunk without a selected row is not read."""
        size = self._rows.chunk_rows
        pours = slot.staged and self._may_pour(slot.summed)
        for chunk in range(span.first, span.last):
            if index is None:
                yield partial(self._unsummed if pours else self._at_once, span, chunk, slot)
                continue
            start = chunk * size - span.lo
            first, last = np.searchsorted(index, [start, start + size]).tolist()
            if last > first:
                picked = index[first:last] - start
                yield partial(slot.fill, first, len(picked), partial(self._picked, chunk, picked))

    def _chunk(self, chunk: int, out: np.ndarray) -> None:
        self._rows.chunk(chunk, out, threads=1, verify=self._verify)

    def files(self, device: Copies, threads: int) -> Files | None:
        """What can read the chunks by itself: plain ones, wanted whole, that the device sums if they are verified."""
        if self._selection or not self._may_pour(device.sums):
            return None
        return device.files(threads)

    def _may_pour(self, summed: bool) -> bool:
        """Whether whole chunks go to a device unchecked: nobody asked for that, or it sums words itself."""
        return self._rows.plain and (not self._verify or (summed and self._words))

    def _at_once(self, span: _Span, chunk: int, slot: Slot) -> None:
        """Read a chunk, verified or not, on the host."""
        size = self._rows.chunk_rows
        slot.fill((chunk - span.first) * size, size, partial(self._whole, span, chunk))

    def _unsummed(self, span: _Span, chunk: int, slot: Slot) -> None:
        """Read a chunk whose bytes the device will sum, all of them: also those of rows beyond the span."""
        found: list[tuple[int, int] | None] = []

        def read(out: np.ndarray) -> tuple[int, int]:
            found.append(self._rows.chunk_unsummed(chunk, out))
            return (0, len(out)) if found[0] is not None else (0, 0)

        size = self._rows.chunk_rows
        slot.fill((chunk - span.first) * size, size, read)
        if found[0] is None:
            self._at_once(span, chunk, slot)
        elif self._verify:
            self._expect(span, slot, chunk, found[0])

    def _loading(self, span: _Span, slot: FileSlot, files: Files) -> Loading:
        chunks = Chunks(
            range(span.first, span.last),
            self._rows.chunk_rows,
            self._rows.extent,
            lambda chunk: self._at_once(span, chunk, slot),
            partial(self._expect, span, slot) if self._verify else None,
        )
        return Loading(slot, files, chunks)

    def _expect(self, span: _Span, slot: Slot, chunk: int, sums: tuple[int, int]) -> None:
        part, size = chunk - span.first, self._rows.chunk_rows
        slot.expect(part, sums, partial(slot.fill, part * size, size, partial(self._all, chunk)))

    def _all(self, chunk: int, out: np.ndarray) -> tuple[int, int]:
        """Read a chunk; returns all of its rows."""
        self._chunk(chunk, out)
        return 0, len(out)

    def _whole(self, span: _Span, chunk: int, out: np.ndarray) -> tuple[int, int]:
        """Read a chunk; returns which of its rows are in the span."""
        self._chunk(chunk, out)
        start = chunk * len(out)
        return max(span.lo - start, 0), min(span.hi - start, len(out))

    def _picked(self, chunk: int, rows: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Read a chunk and copy some of its rows to `out`; returns which rows of `out` count: all."""
        scratch: np.ndarray | None = getattr(self._scratch, "buffer", None)
        if scratch is None:
            from modegap.stores import aligned_empty

            shape = (self._rows.chunk_rows, self.width)
            scratch = self._scratch.buffer = aligned_empty(shape, self.dtype)
        self._chunk(chunk, scratch)
        # mode="clip" lets numpy write into `out` directly; the default buffers a copy.
        np.take(scratch, rows, axis=0, out=out, mode="clip")
        return 0, len(rows)

    def _cut(
        self,
        span: _Span,
        slot: Slot,
        index: np.ndarray | None,
        columns: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    ) -> Iterator[ActivationBatch]:
        picked = [None if c is None else torch.from_numpy(c if index is None else c[index]) for c in columns]
        row = None if index is None else torch.from_numpy(index + span.lo)
        kept = span.hi - span.lo if index is None else len(index)
        # Without a selection rows lie where their chunks were read to.
        begin = span.lo - span.first * self._rows.chunk_rows if index is None else 0
        scale = self._rows.scale(span.first)
        limit = self._batch_rows
        found = slot.magnitudes if isinstance(slot, FileSlot) else {}
        for lo in range(0, kept, limit):
            hi = min(lo + limit, kept)
            sample, position, modality = (None if c is None else c[lo:hi] for c in picked)
            after = span.hi if hi == kept else span.lo + hi if row is None else int(row[hi])
            yield ActivationBatch(
                x=slot.rows[begin + lo : begin + hi],
                start=span.lo + lo if row is None else int(row[lo]),
                point=self._point,
                scale=scale,
                sample=sample,
                position=position,
                modality=modality,
                row=None if row is None else row[lo:hi],
                stop=after,
                magnitudes=found.get((begin + lo, begin + hi)),
            )

    def _modality_of(self, lo: int, hi: int) -> np.ndarray | None:
        """Modality of rows lo to hi; read in windows, since a read verifies whole chunks of the column."""
        if not (self._window[0] <= lo and hi <= self._window[1]):
            stop = min(max(lo + _MODALITY_WINDOW, hi), self._stop)
            self._modality, self._window = self._rows.modality(lo, stop), (lo, stop)
        if self._modality is None:
            return None
        return self._modality[lo - self._window[0] : hi - self._window[0]]
