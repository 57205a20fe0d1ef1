"""A bounded ring of reused buffers and the threads that fill it, in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from .errors import EngineError
from .upload import Copies, Staging, Sums


class _StoppedError(Exception):
    """The consumer has left; unwinds the producer."""


@dataclass(frozen=True, slots=True)
class _Unsummed:
    """A part whose rows must have certain checksums on the device, or else be read `again`."""

    index: int
    sums: tuple[int, int]
    again: Callable[[], None]


class Slot:
    """One buffer: `rows` [n, d], the tensor that batches are views of.

    Several threads fill different parts of it at once. On a device the rows pass through `staging` buffers, and each
    part is on its way as soon as it is there.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype,
        part_rows: int,
        device: Copies | None,
        staging: Staging | None = None,
    ) -> None:
        """Allocate; staging buffers hold `part_rows` rows."""
        self._device, self._part_rows, self._staging = device, part_rows, staging
        self._unsummed: list[_Unsummed] = []
        self._sums: Sums | None = None
        if device is None:
            from modegap.stores import aligned_empty

            self._host = aligned_empty(shape, dtype)
            self.rows = torch.from_numpy(self._host)
        else:
            self.rows = device.empty(shape, torch_dtype(dtype))
            self._lane = device.lane()
            # The allocator may hand out memory that work of its last owner still reads.
            device.hold(self._lane, device.mark())

    @property
    def staged(self) -> bool:
        """Whether the rows are on a device."""
        return self._device is not None

    @property
    def summed(self) -> bool:
        """Whether the device sums rows, so that `expect` can be told what they must be."""
        return self._device is not None and self._device.sums

    def fill(self, at: int, count: int, read: Callable[[np.ndarray], tuple[int, int]]) -> None:
        """Fill rows from row `at` on: `read` puts up to `count` rows into an array and says which are wanted.

        What it returns, (first, last), are rows of that array, which stands for rows `at` to `at + count`.
        """
        if self._device is None:
            read(self._host[at : at + count])
            return
        assert self._staging is not None, "rows on a device need staging buffers"
        buffer = self._staging.take()
        copied = None
        try:
            first, last = read(buffer.array[:count])
            if last > first:
                target = self.rows[at + first : at + last]
                copied = self._device.copy(self._lane, target, buffer.rows[first:last])
        finally:
            self._staging.give_back(buffer, copied)

    def expect(self, part: int, sums: tuple[int, int], again: Callable[[], None]) -> None:
        """The CRC-32C of a part's rows must be both `sums` on the device before the consumer gets them.

        `again` fills it from what has been checked on the host, or raises what is wrong with it.
        """
        self._unsummed.append(_Unsummed(part, sums, again))

    def filled(self) -> None:
        """All parts have been filled: let the device sum those that are expected to have certain sums."""
        if self._unsummed:
            assert self._device is not None
            count = max(part.index for part in self._unsummed) + 1
            blocks = self.rows[: count * self._part_rows].view(count, -1)
            self._sums = self._device.crc32c(self._lane, blocks)

    def receive(self) -> None:
        """Let the consumer's work wait for the copies; all parts have been filled.

        Raises:
            EngineError: rows that are intact on the host arrive on the device as others, twice.
        """
        if self._device is None:
            return
        if wrong := self._wrong():
            # not in the consumer's thread, whose current GPU and stream are its own
            with ThreadPoolExecutor(1, thread_name_prefix="modegap-read") as reader:
                for part in wrong:
                    reader.submit(part.again).result()
                self._unsummed = wrong
                reader.submit(self.filled).result()
            if self._wrong():
                raise EngineError(
                    "rows of a store change on their way to the GPU: their checksums are right on the host and, "
                    "twice in a row, wrong on the device; see `nvidia-smi -q -d ECC` and the system's log"
                )
        self._device.follow(self._lane, self.rows)

    def _wrong(self) -> list[_Unsummed]:
        """The parts whose sums are not what they must be; waits for them."""
        if self._sums is None:
            return []
        found, expected = self._sums.result(), self._unsummed
        self._sums, self._unsummed = None, []
        return [part for part in expected if any(found[part.index] != wanted for wanted in part.sums)]

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

        With a device there are pinned buffers of `part_rows` rows, one a thread and those being copied: `readers` + 3.
        """
        self.readers = readers
        rows, width = part_rows or shape[0], shape[1]
        staging = Staging(readers + 3, lambda: _pinned(device, (rows, width), dtype))
        self._make: Callable[[], Slot] = lambda: Slot(shape, dtype, rows, device, staging)
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
            last = not self._left
        if last:
            try:
                if self.error is None and not skip:
                    self.item.slot.filled()
            except BaseException as error:
                self.error = error
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
