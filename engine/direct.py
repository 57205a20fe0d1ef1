"""Slots on a device that native threads fill ahead of the consumer: no thread of Python takes part.

All is asked for in the consumer's own thread, between two of its batches. Other threads of Python would cost it more
than that, by waits for the interpreter's lock (docs/store-speed.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from .batch import Magnitudes
from .files import Files, Reading
from .prefetch import Slot
from .upload import Copies, Done, Found, Staging

if TYPE_CHECKING:
    from modegap.stores import Extent


class FileSlot(Slot):
    """A buffer on a device that files are read into; what the host has to read passes through `staging`.

    Attributes:
        magnitudes: by (first row, row after the last), of what `look_at` named, once the rows are received.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: np.dtype, part_rows: int, device: Copies, staging: Staging
    ) -> None:
        """Allocate."""
        super().__init__(shape, dtype, part_rows, device, staging)
        self._to = device
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._given_back: Done | None = device.mark()
        self._looked_at: Sequence[tuple[int, int]] = ()
        self._found: Found | None = None
        self.magnitudes: dict[tuple[int, int], Magnitudes] = {}

    def part(self, at: int, count: int) -> torch.Tensor:
        """Rows `at` to `at + count`: the same tensor each time."""
        view = self._views.get((at, count))
        if view is None:
            view = self._views[at, count] = self.rows[at : at + count]
        return view

    def fill(self, at: int, count: int, read: Callable[[np.ndarray], tuple[int, int]]) -> None:
        """As `Slot.fill`, from a thread that also does other work on the device."""
        with self._to.within(self._lane):
            super().fill(at, count, read)

    def look_at(self, rows: Sequence[tuple[int, int]]) -> None:
        """Which rows, (first, after the last) each, `magnitudes` will be of; none where nobody will ask."""
        self._looked_at = rows

    def filled(self) -> None:
        """Let the device look for the magnitudes too."""
        super().filled()
        if self._looked_at:
            blocks = [self.part(first, last - first) for first, last in self._looked_at]
            self._found = self._to.absmax(self._lane, blocks)

    def receive(self) -> None:
        """As `Slot.receive`; afterwards `magnitudes` are there."""
        super().receive()
        found = [] if self._found is None else self._found.result()
        self.magnitudes = dict(zip(self._looked_at, found, strict=bool(found)))
        self._found = None

    def release(self) -> None:
        """The next readings wait for the consumer's work; so do the lane's copies."""
        self._given_back = self._to.mark()
        self._to.hold(self._lane, self._given_back)

    def idle(self) -> bool:
        """Whether the consumer's work with the last rows is done."""
        return self._given_back is None or self._given_back.query()

    def wait(self) -> None:
        """Return when it is."""
        if self._given_back is not None:
            self._given_back.synchronize()
            self._given_back = None


@dataclass(frozen=True, slots=True)
class Chunks:
    """What `Loading` has to know of the chunks of a slot.

    Attributes:
        indices: which, in order.
        rows: rows of a chunk.
        extent: where one lies; None where it is not there as it should be.
        by_host: has the host read one into the slot, or raises what is wrong with it.
        expect: says what the checksums of one must be; None where nobody wants to know.
    """

    indices: Sequence[int]
    rows: int
    extent: Callable[[int], Extent | None]
    by_host: Callable[[int], None]
    expect: Callable[[int, tuple[int, int]], None] | None


class Loading:
    """Chunks on their way from their files into `slot`; an error waits for `result`, in the order of the slots."""

    def __init__(self, slot: FileSlot, files: Files, chunks: Chunks) -> None:
        """Start; the slot is idle."""
        self.slot, self._files, self._chunks = slot, files, chunks
        self._coming: dict[int, tuple[Extent, Reading]] = {}
        self._whole: dict[int, Extent] = {}
        self._error: Exception | None = None
        self._settled = False
        try:
            self._start()
        except Exception as error:
            self._error = error
        except BaseException:
            self.wait()
            raise

    def _start(self) -> None:
        rows = self._chunks.rows
        for part, chunk in enumerate(self._chunks.indices):
            extent = self._chunks.extent(chunk)
            if extent is None:
                continue
            reading = self._files.read(extent.file, extent.offset, self.slot.part(part * rows, rows))
            if reading is not None:
                self._coming[chunk] = extent, reading

    def arrived(self) -> bool:
        """Whether `settle` would not wait for files."""
        return all(reading.done() for _, reading in self._coming.values())

    def wait(self) -> None:
        """Return when nothing is written to the slot any more; an interrupted wait can be taken up again."""
        while self._coming:
            chunk, (extent, reading) = next(iter(self._coming.items()))
            if reading.ended():
                self._whole[chunk] = extent
            del self._coming[chunk]

    def settle(self) -> None:
        """Wait, have the host read what could not be read in this way, and have the device sum the rest."""
        if self._settled:
            return
        self.wait()
        self._settled = True
        if self._error is not None:
            return
        try:
            for chunk in self._chunks.indices:
                if chunk not in self._whole:
                    self._chunks.by_host(chunk)
                elif self._chunks.expect is not None:
                    self._chunks.expect(chunk, self._whole[chunk].sums)
            with torch.inference_mode(False), torch.no_grad():
                self.slot.filled()
        except Exception as error:
            self._error = error

    def result(self) -> None:
        """Settle, and raise what went wrong."""
        self.settle()
        if self._error is not None:
            raise self._error


class Ring:
    """A fixed number of slots, acquired and given back by one thread."""

    def __init__(self, count: int, make: Callable[[], FileSlot], files: Files) -> None:
        """`count` slots, made when they are first needed, for what `files` reads."""
        self.files = files
        self._make, self._unmade = make, count
        self._free: deque[FileSlot] = deque()
        self._made: list[FileSlot] = []

    def ready(self) -> bool:
        """Whether `acquire` would not wait."""
        return self._unmade > 0 or (bool(self._free) and self._free[0].idle())

    def acquire(self) -> FileSlot:
        """A slot whose last rows nobody uses any more."""
        if not self._unmade or (self._free and self._free[0].idle()):
            slot = self._free.popleft()
        else:
            with torch.inference_mode(False):  # the consumer's mode is its own affair
                slot = self._make()
            self._unmade -= 1
            self._made.append(slot)
        slot.wait()
        return slot

    def give_back(self, slot: FileSlot) -> None:
        """Return a slot whose batches are done with."""
        slot.release()
        self._free.append(slot)

    def finish(self) -> None:
        """Wait for the copies of all slots."""
        for slot in self._made:
            slot.finish()


class Loaded(Protocol):
    """Something that lies in the slot of its `loading`, once that has a result."""

    loading: Loading | None


H = TypeVar("H", bound=Loaded)


def loaded(produce: Callable[[Ring], Iterator[H]], ring: Ring) -> Generator[H, None, None]:
    """Items of `produce(ring)` in order, read while the caller works on the ones before.

    An item's slot is given back when the next is asked for. Nothing writes to a slot any more when the generator ends:
    at the end, on an error, and when the consumer closes or drops it. An error is raised in the place of the item that
    it hit.
    """
    coming: deque[tuple[H, Loading]] = deque()
    planned = produce(ring)
    more, failed = True, None
    loading: Loading | None = None
    try:
        while True:
            # With nothing under way, a slot is waited for.
            while more and (ring.ready() or not coming):
                try:
                    item = next(planned)
                    assert item.loading is not None, "its slot is filled in other ways"
                    coming.append((item, item.loading))
                except StopIteration:
                    more = False
                except Exception as error:
                    more, failed = False, error
            if not coming:
                break
            item, loading = coming.popleft()
            loading.result()
            for _, later in coming:
                if not later.arrived():
                    break
                later.settle()  # its sums are there when it is asked for
            loading.slot.receive()
            yield item
            ring.give_back(loading.slot)
        if failed is not None:
            raise failed
    finally:
        for left in (loading, *(later for _, later in coming)):
            if left is not None:
                left.wait()
        ring.finish()
