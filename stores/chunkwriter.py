"""Filling the chunks of one array and committing each as soon as it is full."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .chunkfiles import Encoded
from .commits import CommitLog, CommitRecord
from .committer import Committer
from .draft import Draft
from .errors import StoreError, disk_error
from .filling import Filling
from .layout import StoredArray
from .ranges import samples_holding, samples_touching
from .remote import Place
from .runs import Run
from .values import FP16_MAX, absmax, exponent_for, least_ordinary, row_absmax, suits
from .zarrjson import ArraySpec


@dataclass(frozen=True, slots=True)
class Conflict:
    """A value so large that rows of the same chunk would lose their digits to the scale that it needs.

    Attributes:
        sample: where it is.
        top: its magnitude.
        least: largest magnitude of the row that would lose most.
        samples: first sample of the chunk, and the one after the last.
    """

    sample: int
    top: float
    least: float
    samples: tuple[int, int]


@dataclass(slots=True)
class ChunkWriter:
    """Takes the rows of one array in order and commits the chunks it owns; drops the rows of all others.

    Attributes:
        array: the array.
        log: its commit records.
        wanted: bool [chunks], the chunks still to be written by this writer.
        bounds: int64 [samples + 1], first row of each sample.
    """

    root: Place
    array: StoredArray
    log: CommitLog
    wanted: np.ndarray
    bounds: np.ndarray
    committer: Committer
    _now: Filling | None = field(default=None, init=False)
    _next: tuple[int, Draft] | None = field(default=None, init=False)
    _loudest: int = field(default=0, init=False)

    @property
    def spec(self) -> ArraySpec:
        """The array's shape and place."""
        return self.array.spec

    def samples_wanted(self) -> np.ndarray:
        """Return bool [samples]: which have a row in a chunk still to be written."""
        return samples_touching(self.bounds, self.spec.chunk_rows, self.wanted)

    def _chunks_of(self, sample: int) -> tuple[int, int]:
        start, stop = int(self.bounds[sample]), int(self.bounds[sample + 1])
        size = self.spec.chunk_rows
        return start // size, (-(-stop // size) if stop > start else start // size)

    def _parts(self, sample: int, n_rows: int) -> Iterator[tuple[int, slice]]:
        """Yield each chunk still to be written that the sample has rows in, and which of its rows those are."""
        start = int(self.bounds[sample])
        for chunk in range(*self._chunks_of(sample)):
            if self.wanted[chunk]:
                first, last = self.spec.rows_of(chunk)
                yield chunk, slice(max(first - start, 0), min(last - start, n_rows))

    def begin(self, sample: int, rows: np.ndarray) -> tuple[slice, Run] | None:
        """Return which rows of a sample may be written while they are checked: the first, if they are many.

        They have to be stored as they are, and to have a place that nobody else writes to.
        """
        for chunk, part in self._parts(sample, len(rows)):
            run = self._filling(chunk).run(rows[part])
            return None if run is None else (part, run)
        return None

    def conflict(self, sample: int, rows: np.ndarray, top: float) -> Conflict | None:
        """Return what speaks against one scale for float16 rows and those that share their chunks, if anything.

        Raises:
            StoreError: the rows before cannot be read back from the disk.
        """
        scaled = self._now is not None and self._now.exponent > 0
        if (top <= FP16_MAX and not scaled) or self.spec.dtype != "float16":
            return None
        for chunk, place in self._parts(sample, len(rows)):
            tops = row_absmax(rows[place])
            loudest, largest, least = sample, float(tops.max()), least_ordinary(tops)
            if self._now is not None and self._now.chunk == chunk:
                if self._now.absmax > largest:
                    loudest, largest = self._loudest, self._now.absmax
                if largest > FP16_MAX:
                    try:
                        least = min(least, self._now.least())
                    except OSError as error:
                        raise self._failed(chunk, error) from error
            if not suits(exponent_for(largest), least):
                return Conflict(
                    loudest, largest, least, samples_holding(self.bounds, *self.spec.rows_of(chunk))
                )
        return None

    def write(self, run: Run, *, look: bool) -> None:
        """Write what `begin` returned where it will belong; it counts when `append` says so.

        Raises:
            StoreError: the disk is full, read-only or broken.
        """
        assert self._now is not None
        try:
            self._now.write(run, look=look)
        except OSError as error:
            raise self._failed(self._now.chunk, error) from error

    def append(self, sample: int, rows: np.ndarray, top: float | None, begun: Run | None = None) -> None:
        """Add all rows of a sample; `top` is their largest absolute value, if known.

        `begun` is the run that `begin` returned, written and looked at.

        Raises:
            StoreError: the disk is full, read-only or broken.
        """
        for chunk, place in self._parts(sample, len(rows)):
            now, part = self._filling(chunk), rows[place]
            first, last = self.spec.rows_of(chunk)
            expected, got = first + now.rows, int(self.bounds[sample]) + place.start
            assert expected == got, f"row {got} came where {expected} was due"
            before = now.absmax
            try:
                self._add(now, part, top if len(part) == len(rows) else None, begun)
            except OSError as error:
                raise self._failed(chunk, error) from error
            begun = None
            if now.absmax > before:
                self._loudest = sample
            if now.rows == last - first:
                self._end(now)

    def _add(self, now: Filling, part: np.ndarray, top: float | None, begun: Run | None) -> None:
        run = begun or now.run(part)
        if run is None:
            now.add(part, absmax(part) if top is None else top)
            return
        if run is not begun:
            now.write(run, look=True)
        now.count(run)
        self._prepare_next(now)

    def _failed(self, chunk: int, error: OSError) -> StoreError:
        """Return what the disk says as a `StoreError`, which every later call raises too."""
        failure = disk_error(error, self._file(chunk), self.spec.chunk_bytes)
        self.committer.fail(failure)
        return failure

    def _prepare_next(self, now: Filling) -> None:
        """Have the next file made while this chunk fills; at half time, when the one before has been committed."""
        follows = now.chunk + 1
        if self._next is not None or 2 * now.rows < self.spec.chunk_rows:
            return
        if follows < len(self.wanted) and self.wanted[follows]:
            draft = self._draft(follows)
            if draft is not None:
                self._next = follows, draft
                self.committer.aside(draft.prepare)

    def _filling(self, chunk: int) -> Filling:
        if self._now is None:
            if self._next is not None and self._next[0] == chunk:
                draft: Draft | None = self._next[1]
                self._next = None
            else:
                draft = self._draft(chunk)
            self._now = Filling(self.spec, chunk, self.committer.buffer, draft)
        assert self._now.chunk == chunk, f"chunk {chunk} came before {self._now.chunk} was full"
        return self._now

    def _file(self, chunk: int) -> Place:
        return self.spec.chunk_file(self.root, chunk)

    def _draft(self, chunk: int) -> Draft | None:
        return self.committer.publisher.draft(self.spec, chunk, self._file(chunk))

    def discard(self) -> None:
        """Remove what there is of a chunk that did not become full; for when all threads have ended."""
        for draft in (self._now and self._now.draft, self._next and self._next[1]):
            if draft:
                # A temporary file that cannot be removed now is removed by the next writer.
                with contextlib.suppress(OSError):
                    draft.discard()
        self._now = self._next = None

    def _end(self, now: Filling) -> None:
        self._now = None
        self.wanted[now.chunk] = False
        self.committer.submit(lambda: self._commit(now))

    def _commit(self, now: Filling) -> None:
        """Put a full chunk on the disk, then its commit record.

        Raises:
            StoreError: the disk is full, read-only or broken, or the chunk has been committed by someone
            else.
        """
        file, publisher = self._file(now.chunk), self.committer.publisher
        try:
            encoded = Encoded(self.spec, now.finish(), now.sums)
            staged = publisher.stage_chunk(file, encoded, now.written, now.draft)
            record = CommitRecord(
                rows=now.rows,
                bytes=encoded.bytes,
                crc32c=encoded.crc32c,
                samples=samples_holding(self.bounds, *self.spec.rows_of(now.chunk)),
                absmax=now.absmax,
                overflow=now.overflow,
                exponent=now.exponent,
                inner=encoded.inner,
            )
            publisher.publish(now.chunk, file, staged, self.log, record)
        except StoreError:
            raise
        except OSError as error:
            raise disk_error(error, file, self.spec.chunk_bytes) from error
        finally:
            self.committer.give_back(now.buffer)
