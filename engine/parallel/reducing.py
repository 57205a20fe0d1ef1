"""A reduction shared by the processes of `torchrun`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modegap.engine.errors import EngineError
from modegap.engine.packing import Pilot
from modegap.engine.reduce import certified
from modegap.engine.shards import Node, Shard, boundary_of, cut, tree
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
    ended: Callable[[str], None] | None = None,
) -> R:
    """`engine.reduce.reduce`, a share of the rows in every process; all of them call it and have its result.

    A process takes a run of the rows, cut where the reduction's blocks are and with the shift that one process would
    choose: the first process chooses it from its first block and tells the others, which read ahead meanwhile (in mode
    exact parts agree whatever their shifts: each process chooses its own, and none waits). The parts are merged two and
    two, by sending one of them. All have the same bits, which differ from those of another number of processes by the
    rounding of fp64 sums.

    An error in one process is raised in all of them, where it is met first in the order of the rows; the others have
    gone through their rows by then.

    Args:
        store: the store, opened in each process.
        point: hook point.
        reduction: the same in each process; it stays as it was.
        ranks: from `launched`.
        kind, start, stop, select, samples: as in `engine.reduce.reduce`.
        device: `cuda` takes each process's own GPU.
        progress: as there, of this process's rows.
        ended: called with the name of each part of the pass when this process has come to its end: "settle", "rows",
            "exchange", "finalize". Work on a GPU may be under way then.

    Raises:
        As `engine.reduce.reduce`, in whichever process.
    """
    said = ended or (lambda name: None)
    options = {"kind": kind, "device": ranks.device(device), "select": select, "samples": samples}
    work = _Share(store, point, reduction, ranks, start, stop, options, progress)
    own = work.swept(said)
    said("rows")
    whole = _gathered(own, ranks)
    said("exchange")
    if whole.error is not None:
        # where it happened, with its traceback
        raise whole.error from (None if own.error is whole.error else own.error)
    merged = reduction.fresh() if whole.part is None else whole.part
    result = certified(merged.finalize(), {"store": work.hashed})
    said("finalize")
    return cast("R", result)


@dataclass(slots=True)
class _Found:
    """What the rows of some processes gave: a reduction (None where they had no rows), or the first error."""

    part: Any = None
    error: Exception | None = None

    def merged(self, other: _Found) -> _Found:
        """Both; takes this one over."""
        if self.error is not None or other.error is not None:
            return _Found(error=self.error or other.error)
        if self.part is None or other.part is None:
            return self if other.part is None else other
        try:
            return _Found(self.part.merge(other.part))
        except Exception as error:
            return _Found(error=error)


@dataclass(slots=True)
class _Share:
    """This process's rows."""

    store: ActivationStore
    point: str
    reduction: Any
    ranks: Ranks
    start: int
    stop: int | None
    options: dict[str, Any]
    progress: Progress | None
    hashed: str = ""

    def swept(self, said: Callable[[str], None]) -> _Found:
        """Its rows through the reduction; the first process tells the others what its first block settles, or why not.

        Whatever happens each process calls `settle` once, or another would wait for it. The store's hash is taken
        while a GPU still computes.
        """
        settled = False

        def settle(state: Any, error: Exception | None = None) -> Any:
            nonlocal settled
            settled = True
            state, error = broadcast((state, _portable(error)), 0, self.ranks)
            said("settle")
            if error is not None and not self.ranks.first:
                raise error
            return state

        try:
            shard, boundary = self._shard()
            one, pilot = self.reduction.fresh(), None
            if self.ranks.first:
                if getattr(self.reduction, "shares_shift", hasattr(self.reduction, "boundary")):
                    pilot = Pilot(self.reduction, boundary)
                else:
                    settle(None)  # what may be cut anywhere, or started anyhow
            options = {**self.options, "start": shard.start, "stop": shard.stop, "progress": self.progress}
            with closing(cast("Any", stream(self.store, self.point, **options))) as batches:
                for number, batch in enumerate(batches):
                    if pilot is not None and pilot.take(batch):
                        state, pilot = settle(pilot.reduction.fresh().state_dict()), None
                        # else it has rows already, and will choose as the pilot did
                        one = one if number else self._begun(state)
                    elif not settled and not self.ranks.first:
                        one = self._begun(settle(None))
                    one.update(batch)
            if not settled:
                settle(None if pilot is None else pilot.reduction.fresh().state_dict())
            self.hashed = self.store.content_hash()
            return _Found(one if shard.rows else None)
        except Exception as error:
            if not settled:
                try:
                    settle(None, error)
                except Exception as theirs:
                    # the first process's rows come first
                    return _Found(error=theirs)
            return _Found(error=error)

    def _shard(self) -> tuple[Shard, int]:
        """The rows (none where there are fewer shards than processes), and how many are a block."""
        rows, kind = rows_of(self.store, self.point, self.options["kind"])
        self.options["kind"] = kind
        stop = rows.n_valid_rows if self.stop is None else self.stop
        if not 0 <= self.start <= stop <= rows.shape[0]:
            raise ValueError(
                f"start, stop: got {self.start}, {stop}, expected 0 <= start <= stop <= {rows.shape[0]}"
            )
        chosen = (self.options["select"], self.options["samples"])
        selection = selection_of(*chosen, len(self.store.samples)) or None
        boundary = boundary_of(self.reduction, self.options["device"])
        wanted = stop - self.start
        if selection:
            wanted = sum(shard.rows for shard in cut(rows, self.start, stop, wanted, boundary, selection))
        target = max(1, -(-wanted // self.ranks.world))
        shards = cut(rows, self.start, stop, target, boundary, selection)
        rank = self.ranks.rank
        return shards[rank] if rank < len(shards) else Shard(rank, stop, stop, 0), boundary

    def _begun(self, state: Any) -> Any:
        """A reduction that starts from what the first process has settled."""
        one = self.reduction.fresh()
        if state is None:
            return one
        one.load_state_dict(state)
        return one.fresh()


def _gathered(found: _Found, ranks: Ranks) -> _Found:
    """What all processes found, in each of them."""
    waiting = {Node(ranks.rank, ranks.rank + 1): found}
    # The process of a node is that of its first leaf.
    for node in tree(ranks.world):
        if not node.children:
            continue
        left, right = node.children
        if ranks.rank == left.first:
            part, error = receive(right.first, ranks)
            waiting[node] = waiting.pop(left).merged(_Found(part, error))
        elif ranks.rank == right.first:
            own = waiting.pop(right)
            send((own.part, _portable(own.error)), left.first, ranks)
    whole = waiting.get(Node(0, ranks.world), _Found())
    return _Found(*broadcast((whole.part, _portable(whole.error)), 0, ranks))


def _portable(error: Exception | None) -> Exception | None:
    """The error as it can go to another process: of its own kind, if that survives the way."""
    if error is None:
        return None
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        again = None
    same = type(again) is type(error) and str(again) == str(error)
    return error if same else EngineError(f"{type(error).__name__}: {error}")
