"""A device of threads: copies and computations happen later than they are asked for, in the order of their lane."""

import queue
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from modegap.engine.batch import Magnitudes
from modegap.kernels import absmax, crc32c


class Point:
    """A point in a lane's work."""

    def __init__(self):
        self.reached = threading.Event()

    def query(self):
        return self.reached.is_set()

    def synchronize(self):
        assert self.reached.wait(10)


class Lane:
    """Work done in order by a thread of its own, each piece a moment late."""

    def __init__(self, seed):
        self._jobs = queue.SimpleQueue()
        self._random = random.Random(seed)
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    def _run(self):
        while (job := self._jobs.get()) is not None:
            time.sleep(self._random.random() * 0.002)
            job()

    def add(self, job):
        self._jobs.put(job)

    def mark(self):
        point = Point()
        self.add(point.reached.set)
        return point

    def end(self):
        self.add(None)
        self._thread.join()


class LateSums:
    """Checksums of what is there when the lane comes to it."""

    def __init__(self, lane, blocks):
        lane.add(lambda: setattr(self, "found", crc32c(blocks).tolist()))
        self.done = lane.mark()

    def result(self):
        self.done.synchronize()
        return self.found


class LateMagnitudes:
    """The largest magnitudes of what is there when the lane comes to it."""

    def __init__(self, lane, blocks):
        lane.add(lambda: setattr(self, "found", [absmax(rows) for rows in blocks]))
        self.done = lane.mark()

    def result(self):
        self.done.synchronize()
        return [Magnitudes(found, found) for found in self.found]


class LateReading:
    """Bytes of a file that come some at a time; at the end of the file they stop."""

    def __init__(self, path, offset, target, spoil):
        self.whole = None
        self._thread = threading.Thread(target=self._run, args=(path, offset, target, spoil), name="reading")
        self._thread.start()

    def _run(self, path, offset, target, spoil):
        content = memoryview(target.numpy()).cast("B")
        half = len(content) // 2
        with Path(path).open("rb") as file:
            file.seek(offset)
            got = file.readinto(content[:half])
            time.sleep(0.001)
            got += file.readinto(content[half:])
        spoil(target)
        self.whole = got == len(content)

    def done(self):
        return not self._thread.is_alive()

    def ended(self):
        self._thread.join()
        return self.whole


class LateFiles:
    """`Files` of a `LateCopies`; every `failing`-th file cannot be opened, or ends early."""

    def __init__(self, spoil):
        self.spoil, self.failing = spoil, 0
        self.threads = self.asked = 0

    def read(self, path, offset, target):
        self.asked += 1
        if self.failing and self.asked % self.failing == 0:
            return None
        reading = LateReading(path, offset, target, self.spoil)
        if self.failing and self.asked % self.failing == 1:
            ended, reading.ended = reading.ended, lambda: ended() and False
        return reading


class LateCopies:
    """`Copies` to a device whose memory is the host's.

    The consumer's kernels are functions given to `compute`; they run late too.
    """

    def __init__(self, sums=True):
        self.sums = sums
        self.summed = 0
        self.spoil = lambda target: None
        self.from_files = None
        self.compute = Lane(1)
        self.lanes = []
        self.pinned_made = self.empty_made = self.finished = 0

    def read_files(self):
        """Have a reader of files from now on."""
        self.from_files = LateFiles(lambda target: self.spoil(target))

    def files(self, threads):
        if self.from_files is not None:
            self.from_files.threads = threads
        return self.from_files

    @contextmanager
    def within(self, lane):
        assert lane in self.lanes
        yield

    def pinned(self, shape, dtype):
        self.pinned_made += 1
        return torch.full(shape, -1, dtype=dtype)

    def empty(self, shape, dtype):
        self.empty_made += 1
        return torch.full(shape, -2, dtype=dtype)

    def lane(self):
        self.lanes.append(Lane(2 + len(self.lanes)))
        return self.lanes[-1]

    def copy(self, lane, target, source):
        def job():
            target.copy_(source)
            self.spoil(target)

        lane.add(job)
        return lane.mark()

    def crc32c(self, lane, blocks):
        self.summed += len(blocks)
        return LateSums(lane, blocks)

    def absmax(self, lane, blocks):
        return LateMagnitudes(lane, blocks)

    def mark(self):
        return self.compute.mark()

    def hold(self, lane, point):
        lane.add(point.synchronize)

    def follow(self, lane, target):
        self.compute.add(lane.mark().synchronize)

    def finish(self, lane):
        lane.mark().synchronize()
        self.finished += 1

    def end(self):
        for lane in [self.compute, *self.lanes]:
            lane.end()
