"""What a reader of a sharded array keeps of its shards: where the blocks are."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

_KEPT = 64
"""Shards whose index is kept: more than are read at a time, and a few KiB at most each."""


class ShardIndexes:
    """Indexes of the shards read last, so that a shard's next block costs no request for its index.

    A shard is never changed, but `repair` may put a new one in its place: who finds a block damaged through a
    kept index forgets it and reads again. Safe to use from several threads; those that need the same index at
    once wait for one request.
    """

    def __init__(self) -> None:
        """Keep none yet."""
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._asking: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(
        self, shard: int, read: Callable[[], bytes | None], keep: Callable[[bytes], bool]
    ) -> bytes | None:
        """Return the index of a shard: the one that is kept, else what `read` returns, kept if `keep` says so.

        Raises:
            OSError: from `read`.
        """
        with self._lock:
            asking = self._asking.setdefault(shard, threading.Lock())
        with asking:
            with self._lock:
                index = self._kept.get(shard)
            if index is None and (index := read()) is not None and keep(index):
                with self._lock:
                    self._kept[shard] = index
                    while len(self._kept) > _KEPT:
                        self._asking.pop(self._kept.popitem(last=False)[0], None)
        return index

    def forget(self, shard: int) -> bool:
        """Keep it no longer; return whether it was kept."""
        with self._lock:
            return self._kept.pop(shard, None) is not None
