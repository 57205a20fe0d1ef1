"""Reading a remote array ahead: while the caller works on one block, the next are on their way.

A block of 16 MiB takes as long to be answered as to be sent. One reader that waits for each answer gets a
fraction of what the connection can carry; several requests at once get nearly all of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np

from .buffers import aligned_empty, bytes_of

BUDGET = 128 * 2**20
"""Bytes that are read ahead at most, for an array."""

MOST = 16
"""Blocks that are read ahead at most."""

Fetch = Callable[[int, memoryview], str | None]


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 * MOST, thread_name_prefix="modegap-ahead")


if hasattr(os, "register_at_fork"):
    # A forked child has none of its parent's threads, but would wait for them.
    os.register_at_fork(after_in_child=_pool.cache_clear)


class ReadAhead:
    """Blocks of one array, fetched and checked ahead of a reader that takes them in order.

    The first block is read alone; each next one that follows doubles how many are fetched ahead, up to
    `BUDGET` bytes or `MOST` blocks. A reader that jumps starts again.
    """

    def __init__(self, fetch: Fetch, block_bytes: int, exists: Callable[[int], bool]) -> None:
        """`fetch(block, content)` fills content and says what is wrong; `exists` tells committed blocks."""
        self._fetch, self._block_bytes, self._exists = fetch, block_bytes, exists
        self._most = max(2, min(MOST, BUDGET // max(block_bytes, 1)))
        self._lock = threading.Lock()
        self._coming: dict[int, Future[tuple[np.ndarray, str | None]]] = {}
        self._free: list[np.ndarray] = []
        self._last, self._window = -1, 0

    def read(self, block: int, content: memoryview) -> str | None:
        """Fill `content` with a block and return what is wrong with it, as `fetch` does."""
        with self._lock:
            waiting = self._coming.pop(block, None)
            self._plan(block, follows=waiting is not None or block == self._last + 1)
        if waiting is None:
            return self._fetch(block, content)
        buffer, reason = waiting.result()
        content[:] = bytes_of(buffer)
        with self._lock:
            self._free.append(buffer)
        return reason

    def _plan(self, block: int, *, follows: bool) -> None:
        """Ask for the blocks after `block`, and forget those that the reader has left behind."""
        self._window = min(max(2 * self._window, 1), self._most) if follows and block else 0
        self._last = max(block, self._last) if follows else block
        for number in [n for n in self._coming if not block - self._most <= n <= block + self._most]:
            self._coming.pop(number).cancel()
        for number in range(block + 1, block + 1 + self._window):
            if number not in self._coming and self._exists(number):
                self._coming[number] = _pool().submit(self._fetched, number)

    def _fetched(self, block: int) -> tuple[np.ndarray, str | None]:
        with self._lock:
            buffer = self._free.pop() if self._free else aligned_empty(self._block_bytes)
        return buffer, self._fetch(block, bytes_of(buffer))
