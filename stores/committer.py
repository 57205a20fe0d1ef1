"""The threads, buffers and failures of a writer."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np

from .buffers import aligned_empty
from .objects import Publishing

Call = Callable[[], None]


class Assistant:
    """A thread that does work beside its caller's own: cheaper to call at every put than a pool of one thread."""

    def __init__(self) -> None:
        """Start with no thread; it is made on demand, and ends when nobody knows the assistant any more."""
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._calls.put, None)

    @contextmanager
    def beside(self, work: Call) -> Iterator[None]:
        """Do `work` while the block runs; leave when nothing of it goes on.

        It is not begun any more once the block is through: whoever needs it done does the rest.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=_attend, args=(self._calls,), name="modegap-look", daemon=True
            )
            self._thread.start()
        turn, over = itertools.count(), threading.Lock()
        failures: list[BaseException] = []

        def called() -> None:
            if next(turn):
                return
            try:
                work()
            except BaseException as error:
                failures.append(error)
            finally:
                over.release()

        over.acquire()
        self._calls.put(called)
        try:
            yield
        finally:
            if next(turn):
                over.acquire()
        if failures:
            raise failures[0]

    def finish(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None


def _attend(calls: SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # what it holds is not kept until the next one


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
        self.assistant = Assistant()
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

    def submit(self, work: Call) -> None:
        """Commit a chunk in the background; wait first while `depth` are on their way."""
        self._slots.acquire()

        def run() -> None:
            try:
                work()
            finally:
                self._slots.release()

        self._pending.append(self._pool.submit(run))

    def aside(self, work: Call) -> None:
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
        self.assistant.finish()
        self._pool.shutdown(wait=True)
        self._free.clear()
