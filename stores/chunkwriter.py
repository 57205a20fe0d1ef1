"""Filling the chunks of one array and committing each as soon as it is full."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from .buffers import aligned_empty
from .chunkfiles import Encoded
from .commits import CommitLog, CommitRecord
from .errors import StoreError, disk_error
from .filling import Filling
from .layout import StoredArray
from .objects import Publishing
from .ranges import samples_holding, samples_touching
from .remote import Place
from .values import absmax
from .zarrjson import ArraySpec


class Committer:
    """Writes full chunks in background threads, so that syncing one does not hold up filling the next.

    At most `depth` chunks are on their way; a further one waits. The first failure is kept and raised at the
    next call: no error is lost, and nothing is committed after it by mistake, since each chunk commits
    itself.
    """

    def __init__(self, depth: int, publisher: Publishing) -> None:
        """Start with no thread and no buffer; both are made on demand and reused."""
        self.publisher = publisher
        self._pool = ThreadPoolExecutor(max_workers=depth, thread_name_prefix="modegap-commit")
        self._slots = threading.BoundedSemaphore(depth)
        self._free: dict[int, list[np.ndarray]] = {}
        self._pending: list[Future[None]] = []
        self._failure: BaseException | None = None

    def buffer(self, nbytes: int) -> np.ndarray:
        """Return a page-aligned uint8 buffer of `nbytes`, with old content."""
        free = self._free.setdefault(nbytes, [])
        return free.pop() if free else aligned_empty(nbytes)

    def submit(self, buffer: np.ndarray, work: Callable[[], None]) -> None:
        """Run `work` in the background and take `buffer` back after it."""
        self._slots.acquire()

        def run() -> None:
            try:
                work()
            finally:
                self._free[buffer.nbytes].append(buffer)
                self._slots.release()

        self._pending.append(self._pool.submit(run))

    def check(self) -> None:
        """Raise the first failure of a chunk that was on its way.

        Raises:
            StoreError: the disk is full, read-only or broken, or another writer got in between.
        """
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            self._failure = self._failure or future.exception()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait for everything on its way, then end the threads and give the buffers back."""
        self._pool.shutdown(wait=True)
        self._free.clear()


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

    def append(self, sample: int, rows: np.ndarray, top: float | None) -> None:
        """Add all rows of a sample; `top` is their largest absolute value, if known."""
        start, size = int(self.bounds[sample]), self.spec.chunk_rows
        for chunk in range(*self._chunks_of(sample)):
            if not self.wanted[chunk]:
                continue
            first, last = self.spec.rows_of(chunk)
            piece = slice(max(first - start, 0), min(last - start, len(rows)))
            now = self._now = self._now or Filling(
                self.spec, chunk, self.committer.buffer(self.spec.chunk_bytes)
            )
            expected, got = now.chunk * size + now.rows, start + piece.start
            assert expected == got, f"row {got} came where {expected} was due"
            part = rows[piece]
            now.add(part, absmax(part) if top is None or len(part) < len(rows) else top)
            if now.rows == last - first:
                self._end(now)

    def _end(self, now: Filling) -> None:
        self._now = None
        self.wanted[now.chunk] = False
        self.committer.submit(now.buffer, lambda: self._commit(now))

    def _commit(self, now: Filling) -> None:
        """Put a full chunk on the disk, then its commit record.

        Raises:
            StoreError: the disk is full, read-only or broken, or the chunk has been committed by someone
            else.
        """
        file = self.spec.chunk_file(self.root, now.chunk)
        encoded = Encoded(self.spec, now.finish(), now.sums)
        publisher = self.committer.publisher
        try:
            staged = publisher.stage_chunk(file, encoded, encoded.planned_bytes)
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
