"""A bounded ring of reused buffers and the thread that fills it."""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped


class _StoppedError(Exception):
    """The consumer has left; unwinds the producer."""


class Slot:
    """One buffer: `host` numpy [rows, d], and `rows`, the tensor that batches are views of.

    With a CUDA device the host side is pinned, and two events order the reuse: the host buffer may be
    refilled when its copy has ended, the device buffer may be overwritten when the consumer's kernels on it
    have.
    """

    def __init__(self, rows: int, width: int, dtype: np.dtype, device: torch.device | None) -> None:
        """Allocate."""
        self._device = device
        if device is None:
            # Page-aligned: a read into default numpy memory (offset 16) runs at a third of the speed.
            memory = mmap.mmap(-1, max(rows * width * dtype.itemsize, 1))
            self.host = np.frombuffer(memory, dtype=dtype, count=rows * width).reshape(rows, width)
            self.rows = torch.from_numpy(self.host)
        else:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            pinned = torch.empty((rows, width), dtype=kind, pin_memory=True)
            self._pinned = pinned
            self.host = pinned.numpy()
            self.rows = torch.empty((rows, width), dtype=kind, device=device)
            self._side: Any = _cuda.Stream(device)
            self._copied: Any = _cuda.Event()
            self._consumed: Any = _cuda.Event()

    def ready_to_fill(self) -> None:
        """Wait until the host buffer may be overwritten (producer)."""
        if self._device is not None:
            self._copied.synchronize()

    def upload(self, count: int) -> None:
        """Start copying the first `count` rows to the device (producer)."""
        if self._device is not None:
            self._side.wait_event(self._consumed)
            with _cuda.stream(self._side):
                self.rows[:count].copy_(self._pinned[:count], non_blocking=True)
                self._copied.record(self._side)

    def receive(self) -> None:
        """Make the consumer's stream wait for the copy (consumer)."""
        if self._device is not None:
            _cuda.current_stream(self._device).wait_event(self._copied)

    def release(self) -> None:
        """Mark the consumer's kernels on this buffer (consumer)."""
        if self._device is not None:
            self._consumed.record(_cuda.current_stream(self._device))


class Slots:
    """The ring: the producer acquires free slots, the consumer gives them back."""

    def __init__(
        self, count: int, rows: int, width: int, dtype: np.dtype, device: torch.device | None = None
    ) -> None:
        """`count` buffers of [rows, width], allocated when they are first needed."""
        self._make: Callable[[], Slot] = lambda: Slot(rows, width, dtype, device)
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._unmade = count
        self._stopped = threading.Event()

    def acquire(self) -> Slot:
        """A slot that may be filled; blocks until there is one (producer)."""
        if self._stopped.is_set():
            raise _StoppedError
        if self._unmade and self._free.empty():
            self._unmade -= 1
            return self._make()
        slot = self._free.get()
        if slot is None:
            raise _StoppedError
        slot.ready_to_fill()
        return slot

    def give_back(self, slot: Slot) -> None:
        """Return a slot whose batches are done with (consumer)."""
        slot.release()
        self._free.put(slot)

    def stop(self) -> None:
        """Make the producer's next `acquire` raise."""
        self._stopped.set()
        self._free.put(None)


class Held(Protocol):
    """Something that lies in a slot."""

    slot: Slot


H = TypeVar("H", bound=Held)


def prefetched(produce: Callable[[Slots], Iterator[H]], slots: Slots) -> Generator[H, None, None]:
    """Items of `produce(slots)`, run in a thread; an item's slot is given back when the next is asked for.

    The thread ends before the generator does: at the end, on an error in either, and when the consumer closes
    or drops the generator. An error of the producer is raised here.
    """
    done = object()
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()  # bounded by the slots

    def work() -> None:
        try:
            for item in produce(slots):
                ready.put(item)
            ready.put(done)
        except _StoppedError:
            pass
        except BaseException as error:
            ready.put(error)

    # Daemon, so that an iterator still suspended at interpreter exit cannot hold the process.
    thread = threading.Thread(target=work, name="modegap-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not done:
            if isinstance(item, BaseException):
                raise item
            item.slot.receive()
            yield item
            slots.give_back(item.slot)
    finally:
        slots.stop()
        thread.join()
