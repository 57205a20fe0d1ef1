"""`Feed`: batches decoded, collated and placed in a thread, while the model computes the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from modegap.engine.datasets import Dataset, Sample, decoded
from modegap.engine.models.backoff import out_of_memory
from modegap.engine.models.collate import Inputs
from modegap.engine.models.loaded import LoadedModel

_cuda: Any = torch.cuda  # its stubs leave streams untyped
_AHEAD = 2
Item = tuple[int, Sample]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A batch ready for the model.

    Attributes:
        items: index and sample, media included: what a retry in smaller parts starts from.
        host: the collated batch.
        placed: the same on the model's device; None where there was no memory for it.
        ready: event after which `placed` is there; None on the host.
    """

    items: list[Item]
    host: Inputs
    placed: Inputs | None
    ready: Any

    def receive(self, loaded: LoadedModel) -> Inputs:
        """The placed batch, ordered before what the caller queues next."""
        if self.placed is None:
            return loaded.place(self.host)
        if self.ready is not None:
            for tensor in _tensors(self.placed):
                if tensor.is_cuda:
                    stream = _cuda.current_stream(tensor.device)
                    stream.wait_event(self.ready)
                    tensor.record_stream(stream)
        return self.placed


class Feed:
    """Iterates over `Prepared` batches; use it as a context manager, which ends its thread.

    Args:
        loaded: the model.
        data: the data set.
        batches: sample indices of each batch.
        collate: makes a batch of samples; called in the thread.
        workers: processes that decode media; 0 decodes in the thread.
        most: the largest batch that is known to fit now, None where none is known.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: Dataset,
        batches: Sequence[Sequence[int]],
        *,
        collate: Callable[[Sequence[Sample]], Inputs],
        workers: int = 0,
        most: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Starts nothing yet."""
        self._loaded, self._data, self._batches = loaded, data, batches
        self._collate, self._workers, self._most = collate, workers, most
        self._stopped = threading.Event()
        self._queue: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=_AHEAD)
        self._thread = threading.Thread(target=self._run, name="modegap-feed", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread and the workers."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.02)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[Prepared]:
        """The batches in order.

        Raises:
            EngineError: a sample that cannot be decoded or prepared; names it.
        """
        while (found := self._queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    def _run(self) -> None:
        try:
            side = _cuda.Stream(self._loaded.device) if self._loaded.device.type == "cuda" else None
            flat = [index for batch in self._batches for index in batch]
            rate = sampling_rate(self._loaded)
            with closing(decoded(self._data, flat, workers=self._workers, rate=rate)) as samples:
                for batch in self._batches:
                    items = [next(samples) for _ in batch]
                    for part in self._parts(items):
                        if not self._put(self._prepare(part, side)):
                            return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _parts(self, items: list[Item]) -> Iterator[list[Item]]:
        while items:
            size = self._most() or len(items)
            yield items[:size]
            items = items[size:]

    def _prepare(self, items: list[Item], side: Any) -> Prepared:
        host = self._collate([sample for _, sample in items])
        if side is None:
            return Prepared(items, host, self._loaded.place(host), None)
        try:
            with _cuda.stream(side):
                placed = self._loaded.place(host)
                ready = _cuda.Event()
                ready.record(side)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return Prepared(items, host, None, None)
        return Prepared(items, host, placed, ready)

    def _put(self, found: Prepared | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(found, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def _tensors(inputs: Inputs) -> list[torch.Tensor]:
    return [*inputs.tensors.values(), inputs.attention, inputs.modality, inputs.target_mask]


def sampling_rate(loaded: LoadedModel) -> int | None:
    """The sampling rate (Hz) that the processor hears; None where it hears nothing."""
    found = getattr(getattr(loaded.processor, "feature_extractor", None), "sampling_rate", None)
    return None if found is None else int(found)
