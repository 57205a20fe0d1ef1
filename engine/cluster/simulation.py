"""What a reduction on a cluster will take, from a walk through its tasks: graph, bytes, memory, transfers."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from modegap.engine.moments import Moments
from modegap.engine.shards import Grain, Node, cut_step, grain, on_gpu, sizes, tree

from .memory import leaf_bytes, merge_bytes, needed_limit
from .reducing import DEVICE_KEPT_BYTES

TASK_BYTES = 6_000
"""Bytes that the scheduler reads and writes a task: its call from the client and to the worker, what the worker
reports, what the client is told; 4,300 to 5,500 measured."""
WORKER_BYTES = 3_000
"""Bytes a worker and second of heartbeats, read and written; 1,000 to 2,500 measured."""

HOST_RATE, _READ_RATE = 0.06e9, 1.0e9
_MERGE_RATE = 1.0e9  # bytes a second of fp64 sums, reading and writing included
DEVICE_RATE = 38.0e9
_DEVICE_TASK_SECONDS = 0.015
"""Of a covariance of width 4096 on one H100 (docs/scaling.md): 8.6 GB in 0.22 s; a pass of few rows, less those."""


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
    block_rows: int | None = None,
    chunk_bytes: int = 16 << 20,
    rate: float | None = None,
    device: str | None = None,
) -> ClusterPlan:
    """The plan of a covariance (or of another reduction, by the bytes of its part) over the rows of a point.

    The tasks are those that `reduce_on` submits, in its order, on workers of equal speed: each takes the next merge
    that is ready, else the next shard; a merge runs where one of its parts lies. On GPUs a worker takes a run of the
    shards, and merges where its parts lie cost nothing beside the tasks that they are.

    Args:
        rows: rows.
        width: channels.
        workers: workers of one thread.
        itemsize: bytes a value.
        shards: how many, of equal size; None cuts as `reduce_on` does.
        shard_bytes: least bytes of a shard.
        part_bytes: of a partial result; a covariance's unless given.
        block_rows: rows of the reduction's block; None takes a covariance's on that device.
        chunk_bytes: of the store's chunks.
        rate: bytes of rows a second and worker; None takes a covariance's on one core with AVX-512, 0.06 GB/s at
            width 4096 (half of two threads' 27.6 s over 3.2 GB) and less at larger widths; on an H100 38 GB/s, as its
            rows are read.
        device: `cuda` for workers of one GPU each; None is the host.

    Raises:
        ValueError: no rows, or no worker.
    """
    if rows < 1 or workers < 1 or (shards is not None and shards < 1):
        raise ValueError(f"got {rows} rows, {workers} workers, {shards} shards; expected at least 1 of each")
    row_bytes = width * itemsize
    part = covariance_part(width) if part_bytes is None else part_bytes
    gpu = on_gpu(device)
    if block_rows is None:
        block_rows = Moments().boundary(device)
    if shards is None:
        of = grain(rows, row_bytes, part, shard_bytes, device)
        cuts = sizes(rows, of, cut_step(of, block_rows, max(chunk_bytes // row_bytes, 1)))
    else:
        cuts = sizes(rows, Grain(-(-rows // shards), rows), 1)
    shards = len(cuts)
    if rate is None:
        rate = DEVICE_RATE if gpu else min(HOST_RATE * 4096 / width, _READ_RATE)
    leaf_seconds = [size * row_bytes / rate + gpu * _DEVICE_TASK_SECONDS for size in cuts]
    ends = [0, *accumulate(size * row_bytes for size in cuts)]
    run = _Walk(leaf_seconds, workers, 3 * part / _MERGE_RATE, ends if gpu else None).found()
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


class _Walk:
    """The run in time order: which worker takes which task, and what lies where.

    Args:
        leaf_seconds: of every leaf.
        workers: how many.
        merge_seconds: of a merge; on GPUs of one with a part that comes from another worker.
        ends: bytes of rows before each leaf and of all, on GPUs; None on the host.
    """

    def __init__(
        self, leaf_seconds: Sequence[float], workers: int, merge_seconds: float, ends: Sequence[int] | None
    ) -> None:
        """Nothing has run yet."""
        self._seconds, self._merge_seconds, self._ends = leaf_seconds, merge_seconds, ends
        shards = len(leaf_seconds)
        self._parent = {child: node for node in tree(shards) for child in node.children}
        leaves = range(shards)
        # On the host all workers take from one queue.
        queues = 1 if ends is None else workers
        self._leaves = [deque(i for i in leaves if i * queues // shards == q) for q in range(queues)]
        self._free = list(range(workers))
        self._at: dict[Node, int] = {}
        self._ready: list[Node] = []  # merges whose parts are there
        self._running: list[tuple[float, int, Node]] = []
        self._now = 0.0
        self._moved = 0

    def found(self) -> _Walked:
        """Run it all."""
        found = _Walked()
        held: dict[int, int] = defaultdict(int)
        while True:
            while any(self._start(worker) for worker in self._candidates()):
                pass
            if not self._running:
                break
            self._now, worker, node = heapq.heappop(self._running)
            self._free.append(worker)
            self._free.sort()
            for child in node.children:
                held[self._at.pop(child)] -= 1
            self._at[node] = worker
            held[worker] += 1
            found.held = max(found.held, held[worker])
            found.kept = max(
                found.kept, sum(map(self._kept, self._at)) + sum(self._kept(n) for *_, n in self._running)
            )
            above = self._parent.get(node)
            if above is not None and all(child in self._at for child in above.children):
                self._ready.append(above)
        found.seconds, found.moved = self._now, self._moved
        return found

    def _candidates(self) -> list[int]:
        """Free workers; where any may take a merge, those that have one of its parts first."""
        first = self._ready[0].children if self._ready and self._ends is None else ()
        return [*(self._at[c] for c in first if self._at[c] in self._free), *self._free]

    def _start(self, worker: int) -> bool:
        """Let a worker begin what is next for it; False where there is nothing."""
        merges = (n for n in self._ready if self._ends is None or worker in [self._at[c] for c in n.children])
        node, seconds = next(merges, None), self._merge_seconds
        if node is not None:
            self._ready.remove(node)
            away = sum(self._at[child] != worker for child in node.children)
            self._moved += away
            if self._ends is not None and not away:
                seconds = 0.0
        else:
            leaves = self._leaves[0 if self._ends is None else worker]
            if not leaves:
                return False
            leaf = leaves.popleft()
            node, seconds = Node(leaf, leaf + 1), self._seconds[leaf]
        heapq.heappush(self._running, (self._now + seconds, worker, node))
        self._free.remove(worker)
        return True

    def _kept(self, node: Node) -> bool:
        """Whether a run folder has a file of it."""
        return self._ends is None or self._ends[node.last] - self._ends[node.first] >= DEVICE_KEPT_BYTES
