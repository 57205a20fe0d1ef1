"""Replicas of a model, one a worker, and a store replayed through all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modegap.engine.errors import EngineError
from modegap.engine.shards import spans

from .mapping import map_tasks
from .passes import opened, where
from .reducing import fingerprint
from .session import Cluster, Task

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel
    from modegap.engine.replay import Replay, ReplaySource
    from modegap.stores import ActivationStore

Progress = Callable[[int, int], None]
Span = tuple[int, int]

MOST_SPANS = 256
"""Tasks that a replay is cut into at most; never by the number of workers, so that files of one run fit the next."""

_lock, _turn = threading.Lock(), threading.Lock()
_models: dict[str, LoadedModel] = {}
_replays: dict[str, Replay] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Replicas:
    """Stands for a loaded model where a store is replayed: every worker loads its own.

    Attributes:
        cluster: the workers.
        load: makes the model; a function of a module that the workers have, or a `functools.partial` of one.
    """

    cluster: Cluster
    load: Callable[[], LoadedModel]


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What the results say about the model."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class ReplaySpec:
    """A replay, as a worker opens it.

    Attributes:
        load: makes the model.
        store: path or URL.
        plan: the store's plan hash.
        content: its content hash.
        source: options of `open_source`.
        batch_size: of `Replay`.
    """

    load: Callable[[], LoadedModel]
    store: str
    plan: str
    content: str
    source: tuple[tuple[str, Any], ...]
    batch_size: int

    def open(self) -> Replay:
        """The replay in this process, with its model: both are kept for the next task.

        Raises:
            EngineError: the model cannot be loaded, or the store not be replayed.
        """
        from modegap.engine.replay import Replay, open_source

        with _lock:
            key, model = fingerprint(self), fingerprint(self.load)
            if key not in _replays:
                if model not in _models:
                    _replays.clear()
                    _models.clear()  # one model a worker: it may fill the GPU
                    _models[model] = self.load()
                loaded, store = _models[model], opened(self.store, self.plan, self.content)
                source = open_source(loaded, store, **dict(self.source))
                _replays[key] = Replay(loaded, source, batch_size=self.batch_size)
            return _replays[key]


@dataclass(slots=True, eq=False)
class RemoteReplay:
    """What an analysis knows of a replay that runs on workers.

    Attributes:
        replicas: the models.
        spec: the replay.
        source: its samples; the rows stay with the workers.
        loaded: name and dtype of the model.
        batch_size: samples a batch.
        progress: called as `progress(done, total)`, in batches.
        retried: (ids, next size) of batches that did not fit.
        failures: (id, reason) of samples that could not be computed.
    """

    replicas: Replicas
    spec: ReplaySpec
    source: ReplaySource
    loaded: ReplicaFacts
    batch_size: int
    progress: Progress
    retried: list[tuple[tuple[str, ...], int]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def open(
        cls,
        replicas: Replicas,
        store: ActivationStore | str | Path,
        options: dict[str, Any],
        batch_size: int,
        progress: Progress | None,
    ) -> RemoteReplay:
        """The replay of a store under the options of `open_source`; one worker opens it and says what it holds.

        Raises:
            EngineError: as `open_source` and `Replay`.
            StoreError: the store cannot be opened here.
        """
        from modegap.stores import as_store

        store = as_store(store)
        given = tuple(sorted(options.items()))
        spec = ReplaySpec(
            replicas.load, where(store), store.plan_hash, store.content_hash(), given, batch_size
        )
        replicas.cluster.ready()
        task = Task(_describe, (spec,), what="opening the replay")
        ((source, facts),) = replicas.cluster.run(lambda: {"replay": task}, lambda graph: ["replay"])
        return cls(replicas, spec, source, facts, batch_size, progress or (lambda done, total: None))

    def map(self, fn: Callable[[Replay, Span, Any], Any], batches: int, given: Any, name: str) -> list[Any]:
        """`fn(replay, span, given)` over contiguous spans of the batches 0 to `batches`, in their order.

        Batches are those of one process, so that what is computed in them has the same bits.
        """
        found = map_tasks(
            self.replicas.cluster,
            _work,
            [(self.spec, fn, span) for span in spans(batches, MOST_SPANS)],
            given,
            name=name,
            weights=[hi - lo for lo, hi in spans(batches, MOST_SPANS)],
            progress=self.progress,
        )
        for _, retried, failures in found:
            self.retried += retried
            self.failures += failures
        return [result for result, _, _ in found]


def batches_of(units: int, size: int) -> int:
    """Batches of `size` that so many units take."""
    return -(-units // size)


def _describe(spec: ReplaySpec) -> tuple[ReplaySource, ReplicaFacts]:
    replay = spec.open()
    source = replace(replay.source, rows=_elsewhere)
    return source, ReplicaFacts(replay.loaded.name, replay.loaded.dtype)


def _elsewhere(item: Any) -> torch.Tensor:
    raise EngineError(f"the rows of {item.id} are read by the workers, not here")


def _work(
    item: tuple[ReplaySpec, Callable[..., Any], Span], given: Any
) -> tuple[Any, Sequence[Any], Sequence[Any]]:
    spec, fn, span = item
    with _turn:  # a model has hooks and edits of one task at a time
        replay = spec.open()
        replay.retried.clear()
        replay.failures.clear()
        result = fn(replay, span, given)
        return result, list(replay.retried), list(replay.failures)
