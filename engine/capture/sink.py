"""`StoreSink`: the thread that puts landed batches into a store, in data set order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from .collect import FP16_MAX, Collector
from .rows import HostRows, largest, split_rows
from .transfer import Flight

if TYPE_CHECKING:
    from modegap.stores import Writer

_QUEUED = 2
# sample index, rows by point, token columns by stream
Ready = tuple[dict[str, HostRows], dict[str, Any]]


class Sink(Protocol):
    """Where captured batches go."""

    done: int

    def take(self, flight: Flight) -> None:
        """Accepts a batch; may wait for those before it."""
        ...

    def drain(self) -> None:
        """Waits until nothing of earlier batches is held on the device."""
        ...


class StoreSink:
    """Puts batches into a store from a thread of its own, so that the model computes meanwhile.

    Rows of samples whose predecessors have not come yet wait in host memory. An error in the thread is raised
    at the next `take`, `drain` or at the end; nothing is put after it.

    Attributes:
        done: samples put so far.
    """

    def __init__(self, writer: Writer, todo: Sequence[int], collector: Collector) -> None:
        """Starts the thread; `todo` are the samples to put, in order."""
        self.done = 0
        self._writer, self._todo, self._collector = writer, list(todo), collector
        self._due = set(self._todo)
        self._waiting: dict[int, Ready] = {}
        self._queue: queue.Queue[Flight | None] = queue.Queue(maxsize=_QUEUED)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="modegap-store", daemon=True)
        self._thread.start()

    def take(self, flight: Flight) -> None:
        """Hands a batch to the thread; waits while two are before it.

        Raises:
            EngineError: a value of an earlier batch is not finite. StoreError: an earlier batch could not be
            written.
        """
        self._raise()
        self._queue.put(flight)

    def drain(self) -> None:
        """Waits until every batch taken so far was put; raises as `take`."""
        self._queue.join()
        self._raise()

    def __enter__(self) -> Self:
        """The sink."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the thread; without an error, after everything was put."""
        if error is not None:
            self._failure = self._failure or error  # what is queued is dropped, not put
        self._queue.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (flight := self._queue.get()) is not None:
            try:
                if self._failure is None:
                    self._land(flight)
            except BaseException as error:
                self._failure = error
            finally:
                flight.release()
                self._queue.task_done()

    def _land(self, flight: Flight) -> None:
        from modegap.stores import SampleRows

        landed = flight.land()
        rows = {}
        for name, one in landed.items():
            rows[name] = split_rows(name, one, flight.ids, flight.on_device[name].wide)
            if one.half and float(largest(one).max()) > FP16_MAX:
                self._collector.overflowed.add(name)
        for at, index in enumerate(flight.indices):
            if index in self._due:
                columns = flight.columns[at] if flight.columns else {}
                self._waiting[index] = ({name: found[at] for name, found in rows.items()}, columns)
        while self.done < len(self._todo) and self._todo[self.done] in self._waiting:
            index = self._todo[self.done]
            found, columns = self._waiting.pop(index)
            self._due.discard(index)
            given = {name: SampleRows(one.tokens, one.pooled) for name, one in found.items()}
            self._writer.put(index, given, columns)
            self.done += 1
        if flight.borrowed:
            for index in set(flight.indices) & self._waiting.keys():
                found, columns = self._waiting[index]
                self._waiting[index] = ({name: _owned(one) for name, one in found.items()}, columns)


def _owned(rows: HostRows) -> HostRows:
    """A copy that outlives the pinned buffer."""
    return HostRows(
        None if rows.tokens is None else np.array(rows.tokens),
        None if rows.pooled is None else np.array(rows.pooled),
    )
