"""Two processes of torchrun that measure together: one of them alone, the other alone, then both."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modegap.engine.parallel import Ranks

GOAL_WEAK = 1.85


def by_torchrun(words: Sequence[str], out: Path, env: dict[str, str]) -> Any:
    """What the first of two processes of `bench.scaling`, called with these words, saves to `out`."""
    import torch

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               "-m", "bench.scaling", "--dir", str(out), *words]  # fmt: skip
    subprocess.run(command, env=env, check=True)
    kept = torch.load(out)
    out.unlink()
    return kept


class Pair:
    """The two processes, seen from one of them; both make the same calls."""

    def __init__(self, device: str, ranks: Ranks) -> None:
        """`device` is `cuda` for a GPU each, or `cpu`."""
        self.device, self.ranks = device, ranks
        self.place = ranks.device(device)

    def in_turn(
        self, rounds: int, alone: Callable[[], Any], together: Callable[[], Any], warm: int = 1
    ) -> tuple[list[float], list[float], list[float]]:
        """Seconds of `alone` in the first process, in the second, and of `together`, the slower one's.

        The first `warm` rounds are left out.
        """
        found: list[list[float]] = []
        for _ in range(warm + rounds):
            found.append([])
            for rank in range(self.ranks.world):
                self.meet()
                found[-1].append(self.seconds(alone) if self.ranks.rank == rank else 0.0)
            self.meet()
            found[-1].append(self.seconds(together))
        one, other, both = (self.slowest(times) for times in zip(*found[warm:], strict=True))
        return one, other, both

    def weak(self, one: Sequence[float], two: Sequence[float]) -> float:
        """Weak scaling: the work that both do in the time in which one does its own."""
        return self.ranks.world * statistics.median(one) / statistics.median(two)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Seconds of a call, its GPU's work included."""
        self.sync()
        begin = time.perf_counter()
        kept = work()
        self.sync()
        took = time.perf_counter() - begin
        del kept
        return took

    def sync(self) -> None:
        """Wait for this process's GPU."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def meet(self) -> None:
        """Wait for the other on the host, so that the one who waits keeps no GPU and no core busy."""
        self.slowest([0.0])

    def slowest(self, times: Sequence[float]) -> list[float]:
        """The larger of each number of this process and of the other's."""
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(times, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        found: list[float] = tensor.tolist()
        return found

    def everyones(self, value: Any) -> list[Any]:
        """The value of each process, in each of them."""
        from modegap.engine.parallel.exchange import broadcast

        return [broadcast(value, rank, self.ranks) for rank in range(self.ranks.world)]


@dataclass(frozen=True)
class Watched(Ranks):
    """Ranks that note when they waited for each other, and until when."""

    waits: list[tuple[float, float]] = field(default_factory=list)

    def barrier(self) -> None:
        begin = time.perf_counter()
        super().barrier()
        self.waits.append((begin, time.perf_counter()))


@dataclass
class Clock:
    """A progress callback that keeps when a capture came how far."""

    begin: float = field(default_factory=time.perf_counter)
    ticks: list[float] = field(default_factory=list)
    samples: int = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase == "capture":
            # of the first call, whose total is what this process captures
            self.samples = self.samples or total
            self.ticks.append(time.perf_counter())

    def parts(self, waits: Sequence[tuple[float, float]]) -> dict[str, float]:
        """Seconds of each part; they add up to the call's."""
        over = time.perf_counter()
        settling, ending = waits or [(self.begin, self.begin), (self.ticks[-1], self.ticks[-1])]
        return {
            "set-up": self.ticks[0] - self.begin - (settling[1] - settling[0]),
            "set-up, waiting for the other": settling[1] - settling[0],
            "batches": self.ticks[-2] - self.ticks[0],
            "writing the rest": ending[0] - self.ticks[-2],
            "end, waiting for the other": ending[1] - ending[0],
            "opening": over - ending[1],
        }


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(times), "least": min(times), "most": max(times), "passes": len(times)}
