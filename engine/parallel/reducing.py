"""A reduction shared by the processes of `torchrun`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modegap.engine.packing import Part, settled
from modegap.engine.reduce import certified
from modegap.engine.shards import Node, boundary_of, cut, tree
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
) -> R:
    """`engine.reduce.reduce`, a share of the rows in every process; all of them call it and have its result.

    A process takes a run of the rows, cut where the reduction's blocks are and with the shift that one process would
    choose; the parts are merged two and two, by sending one of them. All have the same bits, which differ from those
    of another number of processes by the rounding of fp64 sums.

    Args:
        store: the store, opened in each process.
        point: hook point.
        reduction: the same in each process.
        ranks: from `launched`.
        kind, start, stop, select, samples: as in `engine.reduce.reduce`.
        device: `cuda` takes each process's own GPU.
        progress: as there, of this process's rows.

    Raises:
        As `engine.reduce.reduce`.
    """
    rows, kind = rows_of(store, point, kind)
    stop = rows.n_valid_rows if stop is None else stop
    place = ranks.device(device)
    options: dict[str, Any] = {"kind": kind, "device": place, "select": select, "samples": samples}
    selection = selection_of(select, samples, len(store.samples)) or None
    boundary = boundary_of(reduction, place)
    begin = stop if selection else min(stop, start + boundary)
    with closing(cast("Any", stream(store, point, start=start, stop=begin, **options))) as first:
        template, _ = settled(reduction, first, boundary)
    wanted = stop - start
    if selection:
        wanted = sum(shard.rows for shard in cut(rows, start, stop, wanted, boundary, selection))
    shards = cut(rows, start, stop, max(1, -(-wanted // ranks.world)), boundary, selection)
    parts: dict[Node, Part] = {}
    if ranks.rank < len(shards):
        shard = shards[ranks.rank]
        one = template.fresh()
        options["progress"] = progress
        with closing(
            cast("Any", stream(store, point, start=shard.start, stop=shard.stop, **options))
        ) as batches:
            for batch in batches:
                one.update(batch)
        parts[Node(ranks.rank, ranks.rank + 1)] = Part(one, shard.rows)
    # The process of a node is that of its first leaf.
    for node in tree(len(shards)):
        if not node.children:
            continue
        left, right = node.children
        if ranks.rank == left.first:
            parts[node] = parts.pop(left).merged(receive(right.first, ranks))
        elif ranks.rank == right.first:
            send(parts.pop(right), left.first, ranks)
    if shards:
        template = broadcast(parts.get(Node(0, len(shards))), 0, ranks).reduction
    result = template.finalize()
    return cast("R", certified(result, {"store": store.content_hash()}))
