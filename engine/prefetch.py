"""A bounded ring of reused buffers and the threads that fill it, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from .upload import Copies, Staging


class _StoppedError(Exception):
    """The consumer has left; unwinds the producer."""


class Slot:
    """One buffer: `rows` [n, d], the tensor that batches are views of.

    Several threads fill different parts of it at once with `fill`. On a device the rows pass through staging
    buffers, and each part is on its way as soon as it is there.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: np.dtype, device: Copies | None, staging: Staging
    ) -> None:
        """Allocate."""
        self._device, self._staging = device, staging
        if device is None:
            from modegap.stores import aligned_empty

            self._host = aligned_empty(shape, dtype)
            self.rows = torch.from_numpy(self._host)
        else:
            self.rows = device.empty(shape, torch_dtype(dtype))
            self._lane = device.lane()

    def fill(self, at: int, count: int, read: Callable[[np.ndarray], tuple[int, int]]) -> None:
        """Fill rows from row `at` on: `read` puts up to `count` rows into an array and says which are wanted.

        What it returns, (first, last), are rows of that array, which stands for rows `at` to `at + count`.
        """
        if self._device is None:
            read(self._host[at : at + count])
            return
        buffer = self._staging.take()
        copied = None
        try:
            first, last = read(buffer.numpy()[:count])
            if last > first:
                copied = self._device.copy(self._lane, self.rows[at + first : at + last], buffer[first:last])
        finally:
            self._staging.give_back(buffer, copied)

    def receive(self) -> None:
        """Let the consumer's work wait for the copies; all parts have been filled."""
        if self._device is not None:
            self._device.follow(self._lane, self.rows)

    def release(self) -> None:
        """Let the next copies wait for the consumer's work."""
        if self._device is not None:
            self._device.hold(self._lane, self._device.mark())

    def finish(self) -> None:
        """Wait for the copies: the memory is about to go."""
        if self._device is not None:
            self._device.finish(self._lane)


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """The dtype of the tensor that shares memory with an array."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


class Slots:
    """The ring: the producer acquires free slots, the consumer gives them back."""

    def __init__(
        self,
        count: int,
        shape: tuple[int, int],
        dtype: np.dtype,
        *,
        readers: int = 1,
        part_rows: int | None = None,
        device: Copies | None = None,
    ) -> None:
        """`count` buffers of `shape`, filled by `readers` threads, allocated when they are first needed.

        With a device there are `readers` + 3 pinned buffers of `part_rows` rows: one a thread, and those
        being copied.
        """
        self.readers = readers
        part = (part_rows or shape[0], shape[1])
        staging = Staging(readers + 3, lambda: _pinned(device, part, dtype))
        self._make: Callable[[], Slot] = lambda: Slot(shape, dtype, device, staging)
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._made: list[Slot] = []
        self._count = count
        self._stopped = threading.Event()

    def acquire(self) -> Slot:
        """A slot that may be filled; blocks until there is one (producer)."""
        if self._stopped.is_set():
            raise _StoppedError
        if len(self._made) < self._count and self._free.empty():
            self._made.append(self._make())
            return self._made[-1]
        slot = self._free.get()
        if slot is None:
            raise _StoppedError
        return slot

    def give_back(self, slot: Slot) -> None:
        """Return a slot whose batches are done with (consumer)."""
        slot.release()
        self._free.put(slot)

    def stop(self) -> None:
        """Make the producer's next `acquire` raise."""
        self._stopped.set()
        self._free.put(None)

    def finish(self) -> None:
        """Wait for the copies of all slots; nobody fills them any more."""
        for slot in self._made:
            slot.finish()


def _pinned(device: Copies | None, shape: tuple[int, int], dtype: np.dtype) -> torch.Tensor:
    assert device is not None, "only slots on a device are staged"
    return device.pinned(shape, torch_dtype(dtype))


Part = Callable[[], None]
"""Fills some part of a slot."""


class Held(Protocol):
    """Something that lies in a slot, once its parts are filled."""

    slot: Slot
    parts: Sequence[Part]


H = TypeVar("H", bound=Held)


class _Job(Generic[H]):
    """An item whose parts are being filled; futures would cost as much Python as the reading itself."""

    def __init__(self, item: H) -> None:
        self.item = item
        self.error: BaseException | None = None
        self._left = len(item.parts)
        self._lock = threading.Lock()
        self._filled = threading.Lock()
        if self._left:
            self._filled.acquire()

    def run(self, part: Part, skip: bool) -> None:
        """Fill a part, unless another has failed."""
        try:
            if self.error is None and not skip:
                part()
        except BaseException as error:
            self.error = error
        with self._lock:
            self._left -= 1
            if not self._left:
                self._filled.release()

    def wait(self) -> None:
        """Return when all parts are filled, or raise what went wrong."""
        self._filled.acquire()
        if self.error is not None:
            raise self.error


def prefetched(produce: Callable[[Slots], Iterator[H]], slots: Slots) -> Generator[H, None, None]:
    """Items of `produce(slots)` in order, filled by `slots.readers` threads ahead of the caller.

    An item's slot is given back when the next is asked for. The threads end before the generator does: at the
    end, on an error in any of them, and when the consumer closes or drops the generator. An error is raised
    here, in the place of the item that it hit.
    """
    done = object()
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()  # bounded by the slots, as are the tasks
    tasks: queue.SimpleQueue[tuple[_Job[H], Part] | None] = queue.SimpleQueue()
    left = threading.Event()

    def plan() -> None:
        try:
            for item in produce(slots):
                job = _Job(item)
                ready.put(job)
                for part in item.parts:
                    tasks.put((job, part))
            ready.put(done)
        except _StoppedError:
            pass
        except BaseException as error:
            ready.put(error)

    def read() -> None:
        while (task := tasks.get()) is not None:
            task[0].run(task[1], left.is_set())

    # Daemons, so that an iterator still suspended at interpreter exit cannot hold the process.
    planner = threading.Thread(target=plan, name="modegap-prefetch", daemon=True)
    readers = [threading.Thread(target=read, name="modegap-read", daemon=True) for _ in range(slots.readers)]
    for thread in (planner, *readers):
        thread.start()
    try:
        while (given := ready.get()) is not done:
            if isinstance(given, BaseException):
                raise given
            given.wait()
            item = given.item
            item.slot.receive()
            yield item
            slots.give_back(item.slot)
    finally:
        left.set()
        slots.stop()
        planner.join()
        for _ in readers:
            tasks.put(None)
        for thread in readers:
            thread.join()
        slots.finish()
