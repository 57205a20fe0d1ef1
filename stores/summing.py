"""Reading a run of bytes and its checksum at once, by several threads if asked to.

The checksum costs a quarter of the speed of a bare read on one core. Pieces that go to whichever thread is
free, with their checksums combined in order, take that back where a second core is idle.
"""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from .checksum import PIECE, combine, crc32c

_WORTH_SHARING = 4 * PIECE
_FEW = 2


@lru_cache(maxsize=1)
def default_threads() -> int:
    """Return 2, or 1 where this process may use one core only: a third adds nothing to a read from memory."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, available)


@lru_cache(maxsize=1)
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="modegap-sum")


if hasattr(os, "register_at_fork"):
    # A forked child has none of its parent's threads, but would wait for them.
    os.register_at_fork(after_in_child=_helpers.cache_clear)


class _Readers:
    """How many reads are under way in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def __enter__(self) -> int:
        with self._lock:
            self.count += 1
            return self.count

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1


_reading = _Readers()


def read_summed(
    descriptor: int, content: memoryview, offset: int, threads: int = 1, after: int = 0
) -> tuple[int, bytes] | None:
    """Fill `content` from `offset` of an open file.

    Returns:
        Its CRC-32C and up to `after` bytes that follow, as many as there are; None if the file ends before.

    Raises:
        OSError: the file cannot be read.
    """
    tail = bytearray(after)
    with _reading as readers:
        if threads == 1 or len(content) < _WORTH_SHARING:
            # Every piece hands the interpreter lock over twice. Where few read, a checksum of what is still in
            # the cache is worth it; with 16 threads on an H100's host whole chunks are read 1.8 times as fast.
            piece = PIECE if readers <= _FEW else len(content)
            found = _read_in_turn(descriptor, content, offset, tail, piece)
        else:
            found = _read_shared(descriptor, content, offset, tail, threads)
    return None if found is None else (found[0], bytes(tail[: found[1]]))


def _read_shared(
    descriptor: int, content: memoryview, offset: int, tail: bytearray, threads: int
) -> tuple[int, int] | None:
    starts = range(0, len(content), PIECE)
    found: list[tuple[int, int] | None] = [None] * len(starts)
    turn = itertools.count()

    def work() -> None:
        while (index := next(turn)) < len(starts):
            at = starts[index]
            behind = tail if index == len(starts) - 1 else bytearray()
            found[index] = _read_in_turn(descriptor, content[at : at + PIECE], offset + at, behind, PIECE)

    shared = [_helpers().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # One that has not begun has nothing left to do; the others still write into `content`.
        errors = [helper.exception() for helper in shared if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error
    total = behind = 0
    for at, part in zip(starts, found, strict=True):
        if part is None:
            return None
        total = combine(total, part[0], min(PIECE, len(content) - at))
        behind = part[1]
    return total, behind


def _read_in_turn(
    descriptor: int, content: memoryview, offset: int, tail: bytearray, size: int
) -> tuple[int, int] | None:
    """Read and sum piece by piece, then `tail` as far as the file goes; returns the sum and the tail's bytes."""
    found = at = behind = 0
    while at < len(content):
        piece = content[at : at + size]
        last = at + len(piece) == len(content)
        got = os.preadv(descriptor, [piece, tail] if last and tail else [piece], offset + at)
        if got == 0:
            return None
        behind = max(got - len(piece), 0)
        found = crc32c(piece[: got - behind], found)
        at += got - behind
    if tail and not behind:
        behind = os.preadv(descriptor, [tail], offset + len(content))
    return found, behind
