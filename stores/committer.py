"""The threads, buffers and failures of a writer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from .buffers import aligned_empty
from .objects import Publishing


class Committer:
    """Finishes full chunks in background threads, so that syncing one does not hold up filling the next.

    At most `depth` chunks are on their way; a further one waits. The first failure is kept and raised at the
    next call: no error is lost, and nothing is committed after it by mistake, since each chunk commits
    itself.
    """

    def __init__(self, depth: int, publisher: Publishing) -> None:
        """Start with no thread and no buffer; both are made on demand and reused."""
        self.publisher = publisher
        self._pool = ThreadPoolExecutor(max_workers=depth, thread_name_prefix="modegap-commit")
        self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="modegap-look")
        self._slots = threading.BoundedSemaphore(depth)
        self._free: dict[int, list[np.ndarray]] = {}
        self._pending: list[Future[None]] = []
        self._failure: BaseException | None = None

    def buffer(self, nbytes: int) -> np.ndarray:
        """Return a page-aligned uint8 buffer of `nbytes`, with old content."""
        try:
            return self._free[nbytes].pop()
        except (KeyError, IndexError):
            return aligned_empty(nbytes)

    def give_back(self, buffer: np.ndarray | None) -> None:
        """Take a buffer back for others to use."""
        if buffer is not None:
            self._free.setdefault(buffer.nbytes, []).append(buffer)

    def submit(self, work: Callable[[], None]) -> None:
        """Commit a chunk in the background; wait first while `depth` are on their way."""
        self._slots.acquire()

        def run() -> None:
            try:
                work()
            finally:
                self._slots.release()

        self._pending.append(self._pool.submit(run))

    @contextmanager
    def beside(self, work: Callable[[], None]) -> Iterator[None]:
        """Do `work` in a thread of its own while the block runs; leave when nothing of it goes on.

        It is not begun any more once the block is through: whoever needs it done does the rest.
        """
        helper = self._beside.submit(work)
        try:
            yield
        finally:
            if not helper.cancel():
                helper.exception()  # waits
        if not helper.cancelled():
            helper.result()

    def aside(self, work: Callable[[], None]) -> None:
        """Do, when a thread is free, what nobody waits for and what cannot fail."""
        self._pool.submit(work)

    def fail(self, failure: BaseException) -> None:
        """Keep a failure of the caller's own."""
        self._failure = self._failure or failure

    def check(self) -> None:
        """Raise the first failure of a chunk that was on its way.

        Raises:
            StoreError: the disk is full, read-only or broken, or another writer got in between.
        """
        if self._pending:
            done = [future for future in self._pending if future.done()]
            self._pending = [future for future in self._pending if not future.done()]
            for future in done:
                self._failure = self._failure or future.exception()
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait for everything on its way, then end the threads and give the buffers back."""
        self._beside.shutdown(wait=True)
        self._pool.shutdown(wait=True)
        self._free.clear()
