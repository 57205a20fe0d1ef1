"""The ring of buffers: order, bounds, errors and early ends, with several readers and a device that lags."""

import random
import runpy
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.prefetch import Slot, Slots, prefetched
from modegap.engine.upload import Staging

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_device.py"))))

PARTS, PART_ROWS, WIDTH = 3, 4, 5
DTYPE = np.dtype(np.float32)


@dataclass
class Item:
    slot: Slot
    parts: list
    index: int


@dataclass
class Source:
    """Items whose rows hold their own numbers; counts what is being read."""

    count: int
    fail_at: int = -1
    delay: float = 0.001
    started: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: int = 0
    most_reading: int = 0

    def produce(self, slots):
        for index in range(self.count):
            slot = slots.acquire()
            parts = [
                partial(slot.fill, k * PART_ROWS, PART_ROWS, partial(self.read, index, k))
                for k in range(PARTS)
            ]
            yield Item(slot, parts, index)

    def read(self, index, part, out):
        with self.lock:
            self.started.append(index)
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        try:
            time.sleep(random.random() * self.delay)
            if index == self.fail_at and part == 1:
                raise OSError(5, "Input/output error")
            out[...] = value(index, part)
            return 0, len(out)
        finally:
            with self.lock:
                self.reading -= 1


def value(index, part):
    return index * PARTS + part


def expected(index):
    column = np.repeat([value(index, k) for k in range(PARTS)], PART_ROWS)
    return torch.from_numpy(np.tile(column[:, None], (1, WIDTH)).astype(DTYPE))


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith(("modegap-prefetch", "modegap-read"))]


def ring(count=3, readers=4, device=None):
    shape = (PARTS * PART_ROWS, WIDTH)
    return Slots(count, shape, DTYPE, readers=readers, part_rows=PART_ROWS, device=device)


@pytest.fixture
def device():
    made = late.LateCopies()
    yield made
    made.end()


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_items_come_in_order_with_their_own_rows(readers):
    source = Source(20)
    seen = []
    for item in prefetched(source.produce, ring(readers=readers)):
        assert torch.equal(item.slot.rows, expected(item.index))
        seen.append(item.index)
    assert seen == list(range(20))
    assert 1 <= source.most_reading <= readers
    assert not threads()


def test_several_readers_work_at_once():
    barrier = threading.Barrier(PARTS, timeout=10)

    def read(out):
        barrier.wait()
        return 0, len(out)

    def produce(slots):
        slot = slots.acquire()
        yield Item(slot, [partial(slot.fill, k, 1, read) for k in range(PARTS)], 0)

    assert [item.index for item in prefetched(produce, ring(readers=PARTS))] == [0]


@pytest.mark.parametrize("readers", [1, 4])
def test_a_lagging_device_sees_every_row(device, readers):
    """No buffer is refilled before its copy, none overwritten before the work on it."""
    source, slots = Source(30), ring(readers=readers, device=device)
    found = {}
    for item in prefetched(source.produce, slots):
        rows, index = item.slot.rows, item.index
        device.compute.add(lambda rows=rows, index=index: found.update({index: rows.clone()}))
    device.compute.mark().synchronize()
    assert sorted(found) == list(range(30))
    for index, rows in found.items():
        assert torch.equal(rows, expected(index)), index
    assert device.empty_made == 3
    assert device.pinned_made <= readers + 3
    assert device.finished == 3


def test_only_the_wanted_rows_are_copied(device):
    def read(out):
        out[...] = 7
        return 1, 3

    def produce(slots):
        slot = slots.acquire()
        yield Item(
            slot, [partial(slot.fill, 4, PART_ROWS, read), partial(slot.fill, 0, 2, lambda out: (0, 0))], 0
        )

    for item in prefetched(produce, ring(device=device)):
        done = device.compute.mark()
        done.synchronize()
        assert item.slot.rows[:, 0].tolist() == [-2] * 5 + [7, 7] + [-2] * 5


def test_an_error_of_a_reader_comes_in_its_place(device):
    for place in (None, device):
        source = Source(10, fail_at=4)
        seen = []
        with pytest.raises(OSError, match="Input/output"):
            seen.extend(item.index for item in prefetched(source.produce, ring(device=place)))
        assert seen == [0, 1, 2, 3]
        assert max(source.started) < 10
        assert not threads()


def test_an_error_of_the_producer_comes_after_what_it_has_given():
    def produce(slots):
        yield from Source(2).produce(slots)
        raise KeyError("plan")

    seen = []
    with pytest.raises(KeyError, match="plan"):
        seen.extend(item.index for item in prefetched(produce, ring()))
    assert seen == [0, 1]
    assert not threads()


@pytest.mark.parametrize("with_device", [False, True])
def test_leaving_early_stops_the_readers(device, with_device):
    source = Source(10_000)
    items = prefetched(source.produce, ring(device=device if with_device else None))
    next(items)
    next(items)
    items.close()
    assert not threads()
    assert max(source.started) < 10
    assert source.reading == 0
    assert device.finished == (3 if with_device else 0)


def test_a_slow_consumer_bounds_what_is_read():
    """Ahead of the consumer lie no more items than the ring has slots."""
    source = Source(12, delay=0)
    for item in prefetched(source.produce, ring(count=2)):
        time.sleep(0.01)
        assert max(source.started) <= item.index + 1


def test_a_staging_buffer_waits_for_its_copy():
    made = []
    staging = Staging(1, lambda: made.append(1) or torch.zeros(1))
    buffer = staging.take()
    copied = late.Point()
    staging.give_back(buffer, copied)
    threading.Timer(0.05, copied.reached.set).start()
    assert staging.take() is buffer
    assert copied.reached.is_set()
    assert made == [1]


def test_staging_buffers_are_shared_fairly():
    """Takers wait for one another, never for more than one buffer at a time."""
    staging = Staging(2, lambda: torch.zeros(1))
    taken = []

    def work():
        for _ in range(50):
            buffer = staging.take()
            taken.append(buffer.rows.data_ptr())
            staging.give_back(buffer, None)

    workers = [threading.Thread(target=work) for _ in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert len(taken) == 250
    assert len(set(taken)) <= 2
