"""What a reduction on a cluster will take, from a walk through its tasks: graph, bytes, memory, transfers."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modegap.engine.shards import Grain, Node, cut_step, grain, sizes, tree

from .memory import leaf_bytes, merge_bytes, needed_limit

TASK_BYTES = 6_000
"""Bytes that the scheduler reads and writes a task: its call from the client and to the worker, what the worker
reports, what the client is told; 4,300 to 5,500 measured."""
WORKER_BYTES = 3_000
"""Bytes a worker and second of heartbeats, read and written; 1,000 to 2,500 measured."""

_RATE, _READ_RATE = 0.06e9, 1.0e9
_MERGE_RATE = 1.0e9  # bytes a second of fp64 sums, reading and writing included


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A planned reduction.

    Attributes:
        rows: rows.
        width: channels.
        shards: leaves of the tree.
        workers: of one task at a time.
        tasks: the first block, a leaf a shard and the merges.
        depth: merges one after the other.
        read_bytes: of rows, by all workers.
        part_bytes: of a partial result.
        scheduler_bytes: in and out of the scheduler.
        moved_bytes: of partial results from worker to worker, in memory (through files with a run folder).
        folder_bytes: most that a run folder holds at a time.
        parts_held: most partial results in one worker's memory at a time.
        worker_bytes: memory of a worker's largest task, with the results it holds then.
        worker_limit: the memory limit to start workers with.
        seconds: with workers that compute `rate` bytes of rows a second; start-up not counted.
    """

    rows: int
    width: int
    shards: int
    workers: int
    tasks: int
    depth: int
    read_bytes: int
    part_bytes: int
    scheduler_bytes: int
    moved_bytes: int
    folder_bytes: int
    parts_held: int
    worker_bytes: int
    worker_limit: int
    seconds: float

    @property
    def scheduler_share(self) -> float:
        """Bytes through the scheduler, of those read."""
        return self.scheduler_bytes / max(self.read_bytes, 1)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {**asdict(self), "scheduler_share": self.scheduler_share}


def plan_reduction(
    rows: int,
    width: int,
    *,
    workers: int,
    itemsize: int = 2,
    shards: int | None = None,
    shard_bytes: int | None = None,
    part_bytes: int | None = None,
    block_rows: int = 2048,
    chunk_bytes: int = 16 << 20,
    rate: float | None = None,
) -> ClusterPlan:
    """The plan of a covariance (or of another reduction, by the bytes of its part) over the rows of a point.

    The tasks are those that `reduce_on` submits, in its order, on workers of equal speed: each takes the next merge
    that is ready, else the next shard; a merge runs where one of its parts lies.

    Args:
        rows: rows.
        width: channels.
        workers: workers of one thread.
        itemsize: bytes a value.
        shards: how many, of equal size; None cuts as `reduce_on` does.
        shard_bytes: least bytes of a shard.
        part_bytes: of a partial result; a covariance's unless given.
        block_rows: rows of the reduction's block.
        chunk_bytes: of the store's chunks.
        rate: bytes of rows a second and worker; None takes a covariance's on one core with AVX-512, 0.06 GB/s at
            width 4096 (half of two threads' 27.6 s over 3.2 GB) and less at larger widths.

    Raises:
        ValueError: no rows, or no worker.
    """
    if rows < 1 or workers < 1 or (shards is not None and shards < 1):
        raise ValueError(f"got {rows} rows, {workers} workers, {shards} shards; expected at least 1 of each")
    row_bytes = width * itemsize
    part = covariance_part(width) if part_bytes is None else part_bytes
    if shards is None:
        of = grain(rows, row_bytes, part, shard_bytes)
        cuts = sizes(rows, of, cut_step(of, block_rows, max(chunk_bytes // row_bytes, 1)))
    else:
        cuts = sizes(rows, Grain(-(-rows // shards), rows), 1)
    shards = len(cuts)
    if rate is None:
        rate = min(_RATE * 4096 / width, _READ_RATE)
    run = _walk([size * row_bytes / rate for size in cuts], workers, 3 * part / _MERGE_RATE)
    need = max(leaf_bytes(part, 2 * block_rows * row_bytes, chunk_bytes), merge_bytes(part))
    # What a task holds of its own is in its need; the worker holds the others beside it.
    beside = max(run.held - 2, 0) * part
    tasks = 2 * shards - 1 + 1
    return ClusterPlan(
        rows=rows,
        width=width,
        shards=shards,
        workers=workers,
        tasks=tasks,
        depth=(shards - 1).bit_length(),
        read_bytes=rows * row_bytes,
        part_bytes=part,
        scheduler_bytes=tasks * TASK_BYTES + int(run.seconds) * workers * WORKER_BYTES,
        moved_bytes=run.moved * part,
        folder_bytes=run.kept * part,
        parts_held=run.held,
        worker_bytes=need + beside,
        worker_limit=needed_limit(need + beside),
        seconds=run.seconds,
    )


def covariance_part(width: int) -> int:
    """Bytes of a partial covariance: the fp64 square, the audit's, sums, shift and magnitudes."""
    return 8 * width * width + 8 * min(width, 64) ** 2 + 40 * width + 2048


@dataclass(slots=True)
class _Walked:
    seconds: float = 0.0
    moved: int = 0
    held: int = 0
    kept: int = 0


def _walk(leaf_seconds: Sequence[float], workers: int, merge_seconds: float) -> _Walked:
    """The run in time order: which worker takes which task, and what lies where."""
    found = _Walked()
    shards = len(leaf_seconds)
    parent = {child: node for node in tree(shards) for child in node.children}
    at: dict[Node, int] = {}
    held: dict[int, int] = defaultdict(int)
    ready: list[Node] = []  # merges whose parts are there
    leaves = iter(range(shards))
    free = list(range(workers))
    heapq.heapify(free)
    running: list[tuple[float, int, Node]] = []
    now = 0.0

    def start(worker: int) -> bool:
        if ready:
            node = ready.pop(0)
            for child in node.children:
                found.moved += at[child] != worker
            heapq.heappush(running, (now + merge_seconds, worker, node))
            return True
        leaf = next(leaves, None)
        if leaf is None:
            return False
        heapq.heappush(running, (now + leaf_seconds[leaf], worker, Node(leaf, leaf + 1)))
        return True

    while True:
        while free:
            # A merge goes to a worker that has one of its parts, if that is free.
            worker = next((at[c] for c in ready[0].children if at[c] in free), free[0]) if ready else free[0]
            if not start(worker):
                break
            free.remove(worker)
        if not running:
            break
        now, worker, node = heapq.heappop(running)
        free.append(worker)
        free.sort()
        for child in node.children:
            held[at.pop(child)] -= 1
        at[node] = worker
        held[worker] += 1
        found.held = max(found.held, held[worker])
        found.kept = max(found.kept, len(at) + len(running))
        above = parent.get(node)
        if above is not None and all(child in at for child in above.children):
            ready.append(above)
    found.seconds = now
    return found
