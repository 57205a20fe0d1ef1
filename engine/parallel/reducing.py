"""A reduction shared by the processes of `torchrun`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modegap.engine.packing import Part, settled
from modegap.engine.reduce import certified
from modegap.engine.shards import Node, boundary_of, cut, shard_rows, tree
from modegap.engine.stream import Kind, Progress, rows_of, selection_of, stream

from .exchange import broadcast, receive, send
from .ranks import Ranks

if TYPE_CHECKING:
    from modegap.engine.batch import ActivationBatch
    from modegap.engine.reduction import Reduction
    from modegap.stores import ActivationStore

R = TypeVar("R")


def reduce(
    store: ActivationStore,
    point: str,
    reduction: Reduction[ActivationBatch, R],
    *,
    ranks: Ranks,
    kind: Kind | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    start: int = 0,
    stop: int | None = None,
    select: Any = None,
    samples: Any = None,
    shard_bytes: int | None = None,
) -> R:
    """`engine.reduce.reduce`, a share of the rows in every process; all of them call it and have its result.

    A process takes a run of shards; parts are merged along the tree that a cluster uses, those of two processes
    by sending one to the other. The bits do not depend on the number of processes.

    Args:
        store: the store, opened in each process.
        point: hook point.
        reduction: the same in each process.
        ranks: from `launched`.
        kind, start, stop, select, samples: as in `engine.reduce.reduce`.
        device: `cuda` takes each process's own GPU.
        progress: called with this process's rows, and its share of them.
        shard_bytes: least bytes of a shard, as on a cluster.

    Raises:
        As `engine.reduce.reduce`.
    """
    rows, kind = rows_of(store, point, kind)
    stop = rows.n_valid_rows if stop is None else stop
    place = ranks.device(device)
    options: dict[str, Any] = {"kind": kind, "device": place, "select": select, "samples": samples}
    boundary = boundary_of(reduction, place)
    with closing(cast("Any", stream(store, point, start=start, stop=stop, **options))) as first:
        template, size = settled(reduction, first, boundary)
    row_bytes = rows.shape[1] * rows.dtype.itemsize
    selection = selection_of(select, samples, len(store.samples)) or None
    shards = cut(
        rows, start, stop, shard_rows(stop - start, row_bytes, size, shard_bytes), boundary, selection
    )
    owner = [i * ranks.world // len(shards) for i in range(len(shards))]
    mine = sum(shard.rows for shard, of in zip(shards, owner, strict=True) if of == ranks.rank)
    done = 0
    parts: dict[Node, Part] = {}
    for node in tree(len(shards)):
        if not node.children:
            if owner[node.first] != ranks.rank:
                continue
            shard = shards[node.first]
            one = template.fresh()
            with closing(
                cast("Any", stream(store, point, start=shard.start, stop=shard.stop, **options))
            ) as batches:
                for batch in batches:
                    one.update(batch)
            parts[node] = Part(one, shard.rows)
            done += shard.rows
            if progress is not None:
                progress(done, mine, done * row_bytes)
            continue
        left, right = node.children
        here, there = owner[left.first], owner[right.first]
        if ranks.rank == here:
            other = parts.pop(right) if here == there else receive(there, ranks)
            parts[node] = parts.pop(left).merged(other)
        elif ranks.rank == there:
            send(parts.pop(right), here, ranks)
    if shards:
        template = broadcast(parts.get(Node(0, len(shards))), 0, ranks).reduction
    result = template.finalize()
    return cast("R", certified(result, {"store": store.content_hash()}))
