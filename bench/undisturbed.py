"""Timing on a machine that others use too: what others took of it is measured, and such samples are repeated."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ALLOWED = 0.1
"""Share of one core that other processes may take while a sample is timed."""
_TICK = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.01


@dataclass(frozen=True, slots=True)
class Work:
    """Something to time: `prepare` is not timed, `run` returns the bytes it moved."""

    run: Callable[[], int]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed call: seconds of wall and of CPU time, bytes, and cores' worth that others took meanwhile."""

    wall: float
    cpu: float
    size: int
    others: float


def others_seconds() -> float:
    """CPU seconds that this machine has spent on anyone else; 0 where the system does not tell.

    The kernel's own threads are not others: they write back what the timed call has dirtied.
    """
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, soft, steal = map(int, stat.read_text().split(None, 9)[1:9])
    busy = user + nice + system + irq + soft + steal - _kernel_ticks()
    own = os.times()
    return busy * _TICK - (own.user + own.system + own.children_user + own.children_system)


def _kernel_ticks() -> int:
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == "2":  # child of kthreadd
            total += int(fields[11]) + int(fields[12])
    return total


def timed(work: Work) -> Sample:
    """One call."""
    work.prepare()
    others, cpu, wall = others_seconds(), time.process_time(), time.perf_counter()
    size = work.run()
    took = time.perf_counter() - wall
    cpu = time.process_time() - cpu
    foreign = max(others_seconds() - others - 2 * _TICK, 0.0)
    return Sample(took, cpu, size, foreign / took)


def measure(cases: Mapping[str, Work], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """GB/s of each case by wall and CPU time: medians of its `rounds` least disturbed samples.

    The cases take turns, in rotated order, after one round to warm up, until each has `rounds` samples during
    which others took less than `ALLOWED` of a core, or `seconds` are over. Which samples count is decided by
    what others took, never by how long they took themselves.

    Returns:
        For each case wall_gbps, cpu_gbps, their spread (min and max of the wall rate), samples taken, and
        others: the largest share of a core that others took in a sample that counts.
    """
    taken: dict[str, list[Sample]] = {name: [] for name in cases}
    names = list(cases)
    end = time.monotonic() + seconds
    for turn in range(10_000):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            sample = timed(cases[name])
            if turn:
                taken[name].append(sample)
        enough = all(sum(s.others < ALLOWED for s in found) >= rounds for found in taken.values())
        if turn >= rounds and (enough or time.monotonic() > end):
            break
    return {name: _medians(found, rounds) for name, found in taken.items()}


def _medians(samples: list[Sample], rounds: int) -> dict[str, float]:
    best = sorted(samples, key=lambda sample: sample.others)[:rounds]
    rates = [sample.size / sample.wall / 1e9 for sample in best]
    return {
        "wall_gbps": statistics.median(rates),
        "cpu_gbps": statistics.median(sample.size / sample.cpu / 1e9 for sample in best),
        "slowest_gbps": min(rates),
        "fastest_gbps": max(rates),
        "samples": len(samples),
        "others": max(sample.others for sample in best),
    }
