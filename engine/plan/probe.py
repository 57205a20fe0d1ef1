"""A short measurement: samples a second through the model, bytes a second to the disk, peak memory."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modegap.engine.capture.capturer import Capturer
from modegap.engine.capture.collect import Collector
from modegap.engine.capture.job import Job
from modegap.engine.capture.pump import Pump
from modegap.engine.capture.transfer import Flight, Shuttle

_cuda: Any = torch.cuda
_DISK_BYTES = 64 * 2**20
_MEASURED = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured.

    Attributes:
        tokens_per_second: padded tokens through the model, rows on the host.
        disk_bytes_per_second: written and synced where the store will be.
        peak_bytes: GPU memory above the weights; None without a GPU.
        samples: how many samples ran.
    """

    tokens_per_second: float
    disk_bytes_per_second: float
    peak_bytes: int | None
    samples: int

    def seconds(self, tokens: int, nbytes: int) -> float:
        """Time of a capture: the slower of model and disk, which work at the same time."""
        return max(tokens / self.tokens_per_second, nbytes / self.disk_bytes_per_second)


class _Dropped:
    """A sink that waits for every batch and forgets it."""

    def __init__(self) -> None:
        self.done = 0

    def take(self, flight: Flight) -> None:
        flight.land()
        flight.release()
        self.done += len(flight.indices)

    def drain(self) -> None:
        """Nothing is held."""


def probe(job: Job) -> Probe:
    """Runs the first batches of a job: one to warm up, then up to three that are timed.

    Raises:
        EngineError: as the capture.
    """
    device = job.loaded.device
    cuda = device.type == "cuda"
    collector = Collector(job.config.stored or "both", half=True, pool=job.config.pool)
    batches = job.batches[: _MEASURED + 1]
    warm, timed = batches[:1], batches[1:] or batches[:1]
    peak = None
    with Capturer(job.loaded, job.points, fused=job.fused) as capturer:
        pump = Pump(job, capturer, collector, Shuttle(), _Dropped())
        if cuda:
            _cuda.synchronize()
            held = _cuda.memory_allocated(device)
            _cuda.reset_peak_memory_stats(device)
        pump.run(warm, lambda: None)
        begin = time.perf_counter()
        pump.run(timed, lambda: None)
        if cuda:
            _cuda.synchronize()
            peak = int(_cuda.max_memory_allocated(device)) - int(held)
        took = time.perf_counter() - begin
    lengths = job.measured.llm
    tokens = sum(len(batch) * int(lengths[list(batch)].max()) for batch in timed)
    return Probe(tokens / took, disk_rate(job.path), peak, sum(map(len, timed)))


def disk_rate(path: Path) -> float:
    """Bytes a second of one file of 64 MiB, written and synced beside `path`."""
    folder = path.expanduser().absolute().parent
    while not folder.exists():
        folder = folder.parent
    block = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".modegap-probe-") as file:
        begin = time.perf_counter()
        for _ in range(_DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _DISK_BYTES / (time.perf_counter() - begin)
