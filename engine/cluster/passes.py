"""A pass over a store's rows, as a worker does its share of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from modegap.engine.chunks import Selection
from modegap.engine.errors import EngineError
from modegap.engine.packing import Part, settled
from modegap.engine.shards import Shard, digest
from modegap.engine.stream import Kind, selection_of, stream, stream_pairs
from modegap.kernels import Workspace
from modegap.stores import ActivationStore
from modegap.stores.errors import StoreError

if TYPE_CHECKING:
    from modegap.engine.batch import ActivationBatch, PairedBatch

_lock = threading.Lock()
_own = threading.local()
_stores: dict[tuple[str, str], ActivationStore] = {}
_MOST_STORES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What is streamed through a reduction.

    Attributes:
        store: path or URL of the store.
        plan: its plan hash.
        points: the hook point, or two whose rows belong together.
        kind: tokens or pooled.
        other: path and plan hash of the second point's store; None for the same.
        select: modalities.
        samples: samples, as `stream` takes them.
        device: where rows are put.
        options: batch_rows, prefetch and readers of `stream`.
    """

    store: str
    plan: str
    points: tuple[str, ...]
    kind: Kind
    other: tuple[str, str] | None = None
    select: tuple[str, ...] | None = None
    samples: np.ndarray | None = None
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> tuple[ActivationStore, ActivationStore]:
        """The stores of the first and of the second point, kept open in this process.

        Raises:
            EngineError: one is not there, or is another one.
        """
        ours = opened(self.store, self.plan)
        return ours, ours if self.other is None else opened(*self.other)

    def batches(self, start: int, stop: int) -> Iterator[ActivationBatch] | Iterator[PairedBatch]:
        """The rows `start` to `stop`."""
        store, other = self.open()
        options: dict[str, Any] = {
            **self.options, "kind": self.kind, "start": start, "stop": stop, "device": self.device,
            "select": self.select, "samples": self.samples,
        }  # fmt: skip
        if len(self.points) == 1:
            return stream(store, self.points[0], **options)
        return stream_pairs(store, (self.points[0], self.points[1]), other=other, **options)

    def selection(self) -> Selection:
        """Which rows are wanted."""
        store, _ = self.open()
        return selection_of(self.select, self.samples, len(store.samples))

    def facts(self) -> tuple[Any, ...]:
        """What decides the rows and how they are grouped, for names."""
        samples = None if self.samples is None else self.samples.tobytes()
        kind = None if self.device is None else self.device.partition(":")[0]
        other = None if self.other is None else self.other[1]
        return self.plan, other, self.points, self.kind, self.select, samples, kind, self.options

    def digests(self, start: int, stop: int) -> tuple[str, ...]:
        """Of the chunks of rows `start` to `stop` at each point."""
        return tuple(
            digest(store, point, self.kind, start, stop)
            for store, point in zip(self.open(), self.points, strict=False)
        )


def where(store: ActivationStore) -> str:
    """Where another process finds a store: its URL or its absolute path."""
    text = str(store.path)
    return text if "://" in text else str(Path(text).absolute())


def opened(path: str, plan: str, content: str | None = None) -> ActivationStore:
    """The store at a path, which must be the one that the client sees.

    Args:
        path: path or URL.
        plan: its plan hash.
        content: its content hash; None where what is read is compared by its own digest.

    Raises:
        EngineError: nothing is there, or another store.
    """
    with _lock:
        store = _stores.get((path, plan)) or _open(path, plan)
        if content is not None and store.content_hash() != content:
            store.refresh()
            if store.content_hash() != content:
                raise EngineError(
                    f"{path} holds other rows here than on the client: mount the same store everywhere"
                )
        if len(_stores) >= _MOST_STORES:
            _stores.clear()
        _stores[path, plan] = store
        return store


def _open(path: str, plan: str) -> ActivationStore:
    try:
        store = ActivationStore.open(path)
    except (StoreError, OSError) as error:
        raise EngineError(
            f"the store cannot be opened here ({' '.join(str(error).split())}): mount {path} on every worker under "
            "the same path, or put it where all can read it (docs/scaling.md)"
        ) from None
    if store.plan_hash != plan:
        raise EngineError(
            f"{path} is another store here than on the client (another plan): mount the same one everywhere"
        )
    return store


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What every leaf starts from: the pass, and the reduction with what its first block settled."""

    work: Pass
    template: Any


def prepare(work: Pass, given: Part, start: int, stop: int, boundary: int) -> tuple[Part, int]:
    """The start of every leaf (`Prepared`, in a part: the client may have no GPU), and the bytes of a result."""
    begin = stop if work.selection() else min(stop, start + boundary)
    with closing(cast("Any", work.batches(start, begin))) as batches:
        template, size = settled(given.reduction, batches, boundary)
    return Part(Prepared(work, template)), size


def leaf(prepared: Part, shard: Shard, digests: tuple[str, ...]) -> Part:
    """A shard's rows through the reduction.

    Raises:
        EngineError: the rows are others than those that the client sees.
        StoreError: as `stream`.
    """
    work: Pass = prepared.reduction.work
    if work.digests(shard.start, shard.stop) != digests:
        for store in work.open():
            store.refresh()
        if work.digests(shard.start, shard.stop) != digests:
            raise EngineError(
                f"{work.store} holds other rows {shard.start} to {shard.stop} here than on the client: mount the same "
                "store everywhere"
            )
    reduction = prepared.reduction.template.fresh()
    with _scratch(reduction), closing(cast("Any", work.batches(shard.start, shard.stop))) as batches:
        for batch in batches:
            reduction.update(batch)
    return Part(reduction, shard.rows)


@contextmanager
def _scratch(reduction: Any) -> Iterator[None]:
    """This thread's scratch memory for a reduction that can borrow it.

    Else every part that waits for its merge would hold on to its own (67 MB at width 4096), and every leaf begin with
    new pages.
    """
    borrow = getattr(reduction, "borrow", None)
    if borrow is None:
        yield
        return
    if not hasattr(_own, "workspace"):
        _own.workspace = Workspace()
    borrow(_own.workspace)
    try:
        yield
    finally:
        borrow(None)


def merge(left: Part, right: Part) -> Part:
    """Both parts."""
    return left.merged(right)
