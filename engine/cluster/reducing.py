"""Reductions over workers: each shard's rows where they are read, partial results merged by a tree on the workers."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from modegap._version import __version__
from modegap.engine.errors import EngineError
from modegap.engine.moments import Moments
from modegap.engine.packing import Part, best_pickler, pack, save_packed
from modegap.engine.shards import Node, Shard, boundary_of, cut, grain, on_gpu, tree
from modegap.engine.stream import Kind, Progress, rows_of

from .calls import Kept
from .memory import TooLargeError, check_workers, leaf_bytes, merge_bytes
from .passes import Pass, Prepared, leaf, merge, prepare, where
from .session import Cluster, Graph, Ref, Task
from .tiles import moments_by_tiles, tile_width

if TYPE_CHECKING:
    from modegap.stores import ActivationStore

_MOST_EMBEDDED = 1 << 20
_MOST_REPEATED = 64 << 10
"""Bytes of what every leaf starts from that each takes with it; more is passed on from worker to worker."""
DEVICE_KEPT_BYTES = 64 << 30
"""On GPUs a result of fewer bytes of rows gets no file: 134 MB take as long to write as gigabytes of rows to read."""


def reduce_on(
    cluster: Cluster,
    stores: Sequence[ActivationStore],
    points: Sequence[str],
    reduction: Any,
    *,
    kind: Kind | None = None,
    start: int = 0,
    stop: int | None = None,
    select: str | Sequence[str] | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    shard_bytes: int | None = None,
    **options: Any,
) -> Any:
    """The reduction of all rows, not finalized, as `reduce` computes it in one process.

    Workers read the rows themselves; tasks name ranges of rows. Shards begin where the reduction's blocks do and
    share their shift, and the tree of merges depends on the rows only: the result has the same bits for any number
    of workers, and differs from one process's by the rounding of fp64 sums. With a run folder every partial result
    is a file there, named by what it is of, until it is merged: a call that was cut off goes on.

    Args:
        cluster: the workers.
        stores: the store, or the two of a pair of points.
        points: hook point, or two whose rows belong together.
        reduction: as in `reduce`; it stays as it was.
        kind, start, stop, select, samples, device, progress: as in `reduce`.
        shard_bytes: least bytes of a shard; see `engine.shards.grain`.
        options: batch_rows, prefetch and readers of `stream`.

    Raises:
        EngineError: no worker has the memory, one does not see the store, or as `reduce`.
        StoreError: unknown points. ValueError: bad arguments.
    """
    rows, kind = rows_of(stores[0], points[0], kind)
    valid = min(rows_of(s, p, kind)[0].n_valid_rows for s, p in zip(stores, points, strict=True))
    stop = valid if stop is None else stop
    if not 0 <= start <= stop <= rows.shape[0]:
        raise ValueError(f"start, stop: got {start}, {stop}, expected 0 <= start <= stop <= {rows.shape[0]}")
    work = Pass(
        where(stores[0]),
        stores[0].plan_hash,
        tuple(points),
        kind,
        None if stores[-1] is stores[0] else (where(stores[-1]), stores[-1].plan_hash),
        (select,) if isinstance(select, str) else None if select is None else tuple(select),
        None if samples is None else np.asarray(samples),
        None if device is None else str(device),
        {name: value for name, value in options.items() if value is not None},
    )
    job = _Job(cluster, work, list(stores), reduction, start, stop, shard_bytes, progress)
    return job.result().reduction


def finalized(
    cluster: Cluster, stores: Sequence[ActivationStore], points: Sequence[str], reduction: Any, **options: Any
) -> Any:
    """`reduce_on`, finalized; a covariance of one point that fits no worker is computed by tiles.

    Arguments and errors as there.
    """
    try:
        return reduce_on(cluster, stores, points, reduction, **options).finalize()
    except TooLargeError as short:
        if type(reduction) is not Moments or str(options.get("device") or "cpu").startswith("cuda"):
            raise
        rows, _ = rows_of(stores[0], points[0], options.get("kind"))
        chunk = rows.chunk_rows * rows.shape[1] * rows.dtype.itemsize
        block = 2 * boundary_of(reduction, None) * rows.shape[1] * rows.dtype.itemsize
        size = tile_width(rows.shape[1], short.limit, block, chunk)
    said = options.pop("progress", None)

    def spread(part: Any, number: int, count: int) -> Any:
        def progress(done: int, total: int, nbytes: int) -> None:
            said(number * total + done, count * total, number * (nbytes // max(done, 1)) * total + nbytes)

        return reduce_on(cluster, stores, points, part, progress=progress if said else None, **options)

    return moments_by_tiles(reduction, rows.shape[1], size, spread)


@dataclass(slots=True)
class _Job:
    """One reduction: its shards, the names of their results, and the graph of what is left to do."""

    cluster: Cluster
    work: Pass
    stores: list[ActivationStore]
    reduction: Any
    start: int
    stop: int
    shard_bytes: int | None
    progress: Progress | None
    row_bytes: int = 0
    shards: list[Shard] = field(default_factory=list)
    digests: list[tuple[str, ...]] = field(default_factory=list)
    need: int = 0
    folder: Path | None = None
    names: dict[Node, str] = field(default_factory=dict)
    _nodes: dict[str, Node] = field(default_factory=dict)
    _seen: int = 0

    def result(self) -> Part:
        workers = self.cluster.ready()
        rows = [rows_of(s, p, self.work.kind)[0] for s, p in zip(self.stores, self.work.points, strict=True)]
        self.row_bytes = sum(one.shape[1] * one.dtype.itemsize for one in rows)
        boundary = boundary_of(self.reduction, self.work.device)
        given = (self.work, parcel(self.cluster, self.reduction), self.start, self.stop, boundary)
        first = Task(prepare, given, what="the first block")
        ((prepared, size),) = self.cluster.run(lambda: {"begin": first}, lambda graph: ["begin"])
        of = grain(self.stop - self.start, self.row_bytes, size, self.shard_bytes, self.work.device)
        self.shards = cut(rows[0], self.start, self.stop, of, boundary, self.work.selection() or None)
        if not self.shards:
            return Part(self.reduction.fresh())
        chunk = max(one.chunk_rows * one.shape[1] * one.dtype.itemsize for one in rows)
        self.need = max(leaf_bytes(size, 2 * boundary * self.row_bytes, chunk), merge_bytes(size))
        what = f"a partial result of {' and '.join(self.work.points)} has {size / 1e9:.2f} GB"
        check_workers(workers, self.need, what)
        self._name_nodes()
        root = Node(0, len(self.shards))
        (part,) = self.cluster.run(
            lambda: self._graph(prepared.reduction, root), lambda graph: [self.names[root]], self._done
        )
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return cast("Part", part)

    def _name_nodes(self) -> None:
        """A name for every node, from what it is of: the same work has the same name in the next call."""
        self.digests = [self.work.digests(shard.start, shard.stop) for shard in self.shards]
        base = hashlib.sha256(repr((__version__, fingerprint(self.reduction), self.work.facts())).encode())
        base.update(repr((self.start, self.shards[0])).encode())
        for node in tree(len(self.shards)):
            own = base.copy()
            own.update(
                repr((self.shards[node.first : node.last], self.digests[node.first : node.last])).encode()
            )
            # Dask takes the words before the first number for the kind of a task, and hands out tasks of one kind that
            # wait for nothing one by one, as workers are free.
            kind = "merge" if node.children else "rows"
            self.names[node] = f"{kind}-{node.first}-{node.last}-{own.hexdigest()[:24]}"
            self._nodes[self.names[node]] = node
        if self.cluster.folder is not None:
            self.folder = self.cluster.folder / f"reduce-{base.hexdigest()[:24]}"

    def _path(self, node: Node) -> Path | None:
        """The file of a node's result; None where there is none."""
        if self.folder is None:
            return None
        if on_gpu(self.work.device) and self._rows(node) * self.row_bytes < DEVICE_KEPT_BYTES:
            return None
        return self.folder / f"{self.names[node]}.part"

    def _graph(self, prepared: Prepared, root: Node) -> Graph:
        """What is left to do for `root`: nodes whose files are there are done."""
        graph: dict[str, Task] = {}
        begin: Any = parcel(self.cluster, prepared)
        if not isinstance(begin, Part) or begin.nbytes > _MOST_REPEATED:
            graph["begin"] = Task(_same, (begin,))
            begin = Ref("begin")
        self._seen = 0
        wanted, stack = {root}, [root]
        while stack:
            node = stack.pop()
            path = self._path(node)
            if path is not None and path.exists():
                self._seen += self._rows(node)
                continue
            wanted.update(node.children)
            stack += node.children
        for node in tree(len(self.shards)):
            path = self._path(node)
            if node not in wanted:
                continue
            name = self.names[node]
            if path is not None and path.exists():
                graph[name] = Task(_ready, (), path)
                continue
            args: tuple[Any, ...]
            if node.children:
                args = tuple(Ref(self.names[child]) for child in node.children)
                graph[name] = Task(merge, args, path, self.need, what="a merge", priority=1)
                continue
            shard = self.shards[node.first]
            graph[name] = Task(
                leaf,
                (begin, shard, self.digests[node.first]),
                path,
                self.need,
                weight=shard.rows,
                nbytes=shard.rows * self.row_bytes,
                run=(node.first, len(self.shards)) if on_gpu(self.work.device) else None,
                what=f"rows {shard.start} to {shard.stop} of {' and '.join(self.work.points)}",
            )
        self._say()
        return graph

    def _rows(self, node: Node) -> int:
        return sum(shard.rows for shard in self.shards[node.first : node.last])

    def _done(self, name: str, task: Task) -> None:
        self._seen += task.weight
        if task.weight:
            self._say()
        if task.fn is merge:
            for ref in task.args:
                path = self._path(self._nodes[ref.name])
                if path is not None:
                    path.unlink(missing_ok=True)

    def _say(self) -> None:
        if self.progress is not None:
            total = sum(shard.rows for shard in self.shards)
            self.progress(self._seen, total, self._seen * self.row_bytes)


def _same(prepared: Part) -> Part:
    """What every leaf takes: passed on from worker to worker."""
    return prepared


def _ready() -> None:
    raise EngineError("a partial result went away while it was needed: run the command again")


def parcel(cluster: Cluster, value: Any) -> Any:
    """The value as an argument of tasks: itself where it is small, else a file that workers read."""
    packed = pack(value, best_pickler())
    if packed.nbytes <= _MOST_EMBEDDED or (cluster.folder is None and cluster.spec.kind != "local"):
        return Part(value)
    path = cluster.scratch() / f"given-{fingerprint(value)}.part"
    if not path.exists():
        save_packed(path, Part(value), best_pickler())
    return Kept(str(path))


def fingerprint(value: Any) -> str:
    """Hash of a value's packed form."""
    packed = pack(value, best_pickler())
    found = hashlib.sha256(packed.header)
    for array in packed.arrays:
        found.update(repr((array.dtype.str, array.shape)).encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:24]
