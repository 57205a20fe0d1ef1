"""Checking every committed byte of a store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .buffers import aligned_empty, bytes_of
from .checksum import TRAILER
from .chunkfiles import has_its_size, read_block
from .damage import Damage
from .errors import DamagedChunkError, NotCommittedError
from .handles import size_of
from .layout import StoredArray
from .metadata import damaged_metadata
from .ranges import samples_holding
from .remote import RemotePath
from .store import ActivationStore

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found: committed chunks (or shards) checked, of how many, their bytes, the damage."""

    ok: bool
    chunks_checked: int
    chunks_committed: int
    bytes: int
    damaged: list[Damage]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self)


def verify(
    store: ActivationStore,
    *,
    fraction: float = 1.0,
    progress: Progress | None = None,
    threads: int | None = None,
) -> VerifyReport:
    """Check sizes and checksums of committed chunks, their commit records, and all metadata.

    Each chunk's content must match the checksum behind it in its file and the one in its commit record. A
    `fraction` below 1 checks that share of the chunks of each array, evenly spread, at least one.
    `progress(done, total)` is called in bytes. Memory: one chunk a thread, of which there are by default two,
    or eight for a store behind a URL, where each waits for the network.

    Raises:
        ValueError: fraction not in (0, 1], or threads below 1.
        StoreError: the store has been deleted, or a file may not be read: neither is damage.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if threads is None:
        threads = 8 if isinstance(store.path, RemotePath) else 2
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    store.refresh()
    damaged = list(damaged_metadata(store.path, store.header))
    try:
        bounds = {array.spec.path: store.bounds(array) for array in store.arrays}
    except DamagedChunkError:
        # Without row ranges no chunk can be told from another's samples; the metadata come first.
        return VerifyReport(False, 0, 0, 0, damaged)
    jobs = []
    committed = 0
    for array in store.arrays:
        chunks = np.flatnonzero(store.commits(array).committed)
        committed += len(chunks)
        count = min(len(chunks), int(np.ceil(fraction * len(chunks))))
        picked = chunks[np.arange(count) * len(chunks) // max(count, 1)]
        jobs += [(array, int(chunk)) for chunk in picked]
    total = sum(array.spec.chunk_bytes + TRAILER for array, _ in jobs)
    done = 0
    buffers = threading.local()

    def check(job: tuple[StoredArray, int]) -> Damage | None:
        return check_chunk(store, *job, bounds[job[0].spec.path], buffers)

    for (array, _), damage in _in_order(check, jobs, threads):
        done += array.spec.chunk_bytes + TRAILER
        if damage is not None:
            damaged.append(damage)
        if progress is not None:
            progress(done, total)
    return VerifyReport(not damaged, len(jobs), committed, total, damaged)


Job = tuple[StoredArray, int]


def _in_order(
    check: Callable[[Job], Damage | None], jobs: list[Job], threads: int
) -> Iterator[tuple[Job, Damage | None]]:
    """Yield each job with its result; few wait at a time, so that an interruption ends within a moment."""
    coming: deque[tuple[Job, Future[Damage | None]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="modegap-verify") as pool:
        for job in jobs:
            coming.append((job, pool.submit(check, job)))
            if len(coming) > 2 * threads:
                first, result = coming.popleft()
                yield first, result.result()
        for first, result in coming:
            yield first, result.result()


def check_chunk(
    store: ActivationStore, array: StoredArray, chunk: int, bounds: np.ndarray, buffers: threading.local
) -> Damage | None:
    """Return what is wrong with a committed chunk (or shard), None if nothing is.

    Raises:
        StoreError: the store is gone, or a file may not be read.
    """
    spec, log = array.spec, store.commits(array)
    scratch: np.ndarray | None = getattr(buffers, "scratch", None)
    if scratch is None or scratch.nbytes < spec.block_bytes:
        scratch = buffers.scratch = aligned_empty(spec.block_bytes)
    content, file = bytes_of(scratch)[: spec.block_bytes], spec.chunk_file(store.path, chunk)
    start, stop = spec.rows_of(chunk)
    reason = None
    try:
        record = log.record(chunk)
    except (DamagedChunkError, NotCommittedError):
        reason = "its commit record is damaged"
    else:
        for block in range(start // spec.block_rows, -(-stop // spec.block_rows)):
            reason = read_block(file, spec, block, content, record)
            if reason is not None:
                start, stop = spec.rows_of_block(block)
                break
        else:
            if not has_its_size(spec, store.path, chunk, log):
                reason = f"its file has {size_of(file)} bytes, expected {record.bytes}"
            elif record.samples != samples_holding(bounds, start, stop):
                reason = "its commit record names other samples"
    if reason is None:
        return None
    store.check_there()
    samples = samples_holding(bounds, start, stop)
    return Damage(array.owner, array.kind, chunk, (start, stop), samples, reason)
