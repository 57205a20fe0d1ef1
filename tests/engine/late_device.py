"""A device of threads: copies and computations happen later than they are asked for, in the order of their lane."""

import queue
import random
import threading
import time

import torch

from modegap.kernels import crc32c


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


class LateCopies:
    """`Copies` to a device whose memory is the host's.

    The consumer's kernels are functions given to `compute`; they run late too.
    """

    def __init__(self, sums=True):
        self.sums = sums
        self.summed = 0
        self.spoil = lambda target: None
        self.compute = Lane(1)
        self.lanes = []
        self.pinned_made = self.empty_made = self.finished = 0

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
