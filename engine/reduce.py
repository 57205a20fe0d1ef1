"""One pass of a store's rows through a reduction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from .batch import ActivationBatch, PairedBatch
from .checkpoint import Checkpoint
from .reduction import Reduction
from .stream import Kind, Progress, rows_of, stream, stream_pairs

if TYPE_CHECKING:
    from modegap.stores import ActivationStore

    from .cluster import Cluster

R = TypeVar("R")


def reduce(
    store: ActivationStore,
    point: str,
    reduction: Reduction[ActivationBatch, R],
    *,
    kind: Kind | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    start: int = 0,
    stop: int | None = None,
    batch_rows: int | None = None,
    prefetch: int | None = None,
    select: str | Sequence[str] | None = None,
    samples: Sequence[int] | np.ndarray | None = None,
    readers: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    cluster: str | Cluster | None = None,
) -> R:
    """Stream a point's rows through `reduction` and finalize it.

    Where the result (or an element of a tuple of results) carries a Certificate, the store's content hash is
    added.

    Args:
        store: the store.
        point: hook point.
        reduction: a Reduction; it is spent afterwards.
        kind: "tokens" or "pooled"; None takes token rows where the store has them.
        device: where rows are put and the reduction computes; None is the host.
        progress: called as progress(rows, rows in all, bytes).
        start: first row, as in `stream`, and so are stop, batch_rows, prefetch, select, samples, readers.
        checkpoint: a file that holds the state while the pass runs. It is replaced atomically about every
            `checkpoint_seconds`, continued from if it exists, and removed at the end.
        checkpoint_seconds: see above.
        cluster: workers that share the pass: `local:N`, a Dask scheduler's address, a YAML file, or what
            `modegap.cluster` returned. `checkpoint` is then a folder that they all see, for partial results.

    Raises:
        StoreError: as `stream`.
        EngineError: as the reduction, or the checkpoint is of another pass; or see `engine.cluster.reduce_on`.
        ValueError: bad arguments.
    """
    if cluster is not None:
        options: dict[str, Any] = {
            "kind": kind, "device": device, "start": start, "stop": stop, "select": select, "samples": samples,
            "progress": progress, "batch_rows": batch_rows, "prefetch": prefetch, "readers": readers,
        }  # fmt: skip
        return cast("R", _spread(cluster, [store], [point], reduction, options, checkpoint))
    rows, kind = rows_of(store, point, kind)
    stop = rows.n_valid_rows if stop is None else stop
    saved = None
    if checkpoint is not None:
        facts = {
            "store": store.plan_hash,
            "point": point,
            "kind": kind,
            "rows": f"{start}:{stop}",
            "select": repr(select if select is None or isinstance(select, str) else tuple(select)),
            "samples": "all" if samples is None else np.asarray(samples).tobytes().hex(),
            "reduction": type(reduction).__qualname__,
        }
        saved = Checkpoint(Path(checkpoint), facts, checkpoint_seconds)
        start = saved.resume(reduction, start)
    batches = stream(
        store,
        point,
        kind=kind,
        batch_rows=batch_rows,
        start=start,
        stop=stop,
        prefetch=prefetch,
        device=device,
        select=select,
        samples=samples,
        progress=progress,
        readers=readers,
    )
    return _run(batches, reduction, saved, store)


def reduce_pairs(
    store: ActivationStore,
    points: tuple[str, str],
    reduction: Reduction[PairedBatch, R],
    *,
    other: ActivationStore | None = None,
    cluster: str | Cluster | None = None,
    **options: Any,
) -> R:
    """Stream the same rows at two points through `reduction` (such as CrossMoments) and finalize it.

    Args:
        store: store of the first point, and of the second unless `other` is given.
        points: (point of x, point of y).
        reduction: a Reduction over PairedBatch.
        other: store of the second point.
        cluster: as in `reduce`.
        **options: of `stream_pairs`; with a cluster also `progress`.

    Raises:
        As `stream_pairs` and the reduction.
    """
    if cluster is not None:
        stores = [store, store if other is None else other]
        return cast("R", _spread(cluster, stores, points, reduction, options, None))
    return _run(stream_pairs(store, points, other=other, **options), reduction, None, store, other)


def _spread(
    cluster: str | Cluster,
    stores: list[ActivationStore],
    points: Sequence[str],
    reduction: Any,
    options: dict[str, Any],
    folder: str | Path | None,
) -> Any:
    from .cluster import Cluster, joined
    from .cluster.reducing import finalized

    if isinstance(cluster, Cluster) and folder is not None:
        raise ValueError(
            "checkpoint: a cluster has a folder of its own; give it to modegap.cluster(..., folder=)"
        )
    with joined(cluster, folder) as workers:
        assert workers is not None
        result = finalized(workers, stores, points, reduction, **options)
    names = dict.fromkeys(stores)
    hashes = {name: one.content_hash() for name, one in zip(("store", "other"), names, strict=False)}
    return certified(result, hashes)


def _run(
    batches: Iterator[Any],
    reduction: Reduction[Any, R],
    saved: Checkpoint | None,
    *stores: ActivationStore | None,
) -> R:
    with closing(cast("Any", batches)):
        for batch in batches:
            reduction.update(batch)
            if saved is not None and saved.due(time.monotonic()):
                saved.save(reduction, batch.end)
    result = reduction.finalize()
    names = ("store", "other")
    hashes = {name: s.content_hash() for name, s in zip(names, stores, strict=False) if s is not None}
    if saved is not None:
        saved.remove()
    return cast("R", certified(result, hashes))


def certified(result: Any, hashes: dict[str, str]) -> Any:
    """The result, or the elements of a tuple of results, with the hashes of the stores in its certificate."""
    if isinstance(result, tuple):
        return tuple(certified(part, hashes) for part in result)
    certificate = getattr(result, "certificate", None)
    if certificate is None or not dataclasses.is_dataclass(result) or isinstance(result, type):
        return result
    return dataclasses.replace(result, certificate=dataclasses.replace(certificate, store_hashes=hashes))
