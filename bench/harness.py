"""How the benchmarks check and time: cases, gate, interleaved medians, memory.

Each case calls every provider once and compares it with an fp64 oracle; one that fails its tolerance is
reported and not timed (those known to be inaccurate, which are what people write, are timed and marked).
Providers take turns over rotated random inputs; medians. On a GPU a spin kernel in front hides launch latency.
Floor: the larger of bytes / copy bandwidth and flops / product rate, both measured in the same run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from .memory import peak_bytes

Call = Callable[[], object]
Device = Literal["cpu", "cuda"]
Record = dict[str, object]
SLOW_MS = 5e3
"""A provider that takes longer is not called again for its memory."""
SLOW_WARM_MS = 100.0
"""On the host, a provider that takes longer needs no call before the timed one."""
OURS = "modegap"
"""What the names of our own providers begin with."""


@dataclass
class Case:
    """One operation at one size: providers by name, each a list of calls over rotated inputs.

    Attributes:
        name: of the operation; the same at every width.
        width: channels.
        providers: the first is ours; the inputs behind the calls serve speed, memory and correctness alike.
        error: what a provider's first call returns -> its distance from the fp64 oracle.
        tolerance: providers beyond it are not timed unless they are in `inaccurate`.
        bytes: that the operation must read and write; 0 where they do not matter.
        flops: that it must spend.
        rate: the ceiling its flops are held against: fp16, fp32 or fp64.
        repeats: timed calls of each provider.
        inaccurate: providers that are timed although they fail.
        missing: provider -> why it is not here (not installed, minutes at this size).
    """

    name: str
    width: int
    providers: dict[str, list[Call]]
    error: Callable[[object], float]
    tolerance: float
    bytes: float = 0.0
    flops: float = 0.0
    rate: str = "fp16"
    repeats: int = 12
    inaccurate: frozenset[str] = field(default_factory=frozenset)
    missing: dict[str, str] = field(default_factory=dict)

    def floor_ms(self, top: Mapping[str, float]) -> float:
        """Milliseconds below which the machine cannot go, by the run's ceilings."""
        work = self.flops / top[self.rate] if self.flops else 0.0
        return max(self.bytes / top["copy"], work) * 1e3


def measure(providers: Mapping[str, Sequence[Call]], repeats: int, warm: int = 3) -> dict[str, list[float]]:
    """Milliseconds on the GPU of every repeat, providers interleaved."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn in range(warm + repeats):
        for name, calls in providers.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(2_000_000)
            start.record()
            calls[turn % len(calls)]()
            end.record()
            end.synchronize()
            if turn >= warm:
                times[name].append(start.elapsed_time(end))
    return times


def settle(limit_s: float = 0.5) -> None:
    """Wait until no thread of this process is busy.

    OpenBLAS' threads spin for up to 0.1 s after a call, OpenMP's for 5 ms: a provider that comes next would
    have one of two processors to itself.
    """
    end = time.perf_counter() + limit_s
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.001:
            return


def measure_host(
    providers: Mapping[str, Sequence[Call]], repeats: int, budget_s: float = 1.5
) -> dict[str, list[float]]:
    """Wall milliseconds on the host of every repeat, providers interleaved.

    A provider that has used up `budget_s` keeps what it has (one repeat at least): eigendecompositions take
    minutes where products take milliseconds. A call that is not timed goes before each one that is, as in a
    stream: after a pause processors and caches are cold, which doubles what a call of 2 ms takes.
    """
    times: dict[str, list[float]] = {name: [] for name in providers}
    for turn in range(repeats):
        for name, calls in providers.items():
            if sum(times[name]) > budget_s * 1e3:
                continue
            settle()
            if times[name] and times[name][-1] < SLOW_WARM_MS:
                calls[turn % len(calls)]()
            start = time.perf_counter()
            calls[(turn + 1) % len(calls)]()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def results(case: Case, top: Mapping[str, float], device: Device = "cuda") -> list[Record]:
    """Gate, time, and one record a provider: timed, failed (`failed` says why) or `missing`."""
    errors, records = {}, []
    for name, calls in case.providers.items():
        try:
            errors[name] = case.error(calls[0]())
        except Exception as problem:  # a peer's defect must not end the run
            why = f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
            records.append(_record(case, name, failed=why))
            continue
        if not errors[name] <= case.tolerance and name not in case.inaccurate:
            why = f"error {errors[name]:.2g} above {case.tolerance:g}"
            finite = {"error": errors[name]} if math.isfinite(errors[name]) else {}
            records.append(_record(case, name, failed=why, accurate=False, **finite))
    records += [_record(case, name, missing=why) for name, why in case.missing.items()]
    out = {record["provider"] for record in records}
    timed = {name: calls for name, calls in case.providers.items() if name not in out}
    times = measure(timed, case.repeats) if device == "cuda" else measure_host(timed, case.repeats)
    return [*_timed(case, times, errors, case.floor_ms(top), device), *records]


def _timed(
    case: Case,
    times: Mapping[str, Sequence[float]],
    errors: Mapping[str, float],
    floor: float,
    device: Device,
) -> Iterator[Record]:
    took = {name: statistics.median(sample) for name, sample in times.items()}
    others = [ms for name, ms in took.items() if not name.startswith(OURS)]
    for name, ms in took.items():
        record = _record(case, name, ms=ms, spread_ms=[min(times[name]), max(times[name])], error=errors[name],
                         accurate=errors[name] <= case.tolerance, repeats=len(times[name]))  # fmt: skip
        if others:
            record["speed_over_best_obvious"] = min(others) / ms
        if floor:
            record["fraction_of_floor"] = floor / ms
        if case.flops:
            record["tflops"] = case.flops / ms / 1e9
        if case.bytes:
            record["gb_per_s"] = case.bytes / ms / 1e6
        peak = peak_bytes(case.providers[name][0], device) if ms < SLOW_MS else None
        if peak is not None:
            record["peak_mb"] = peak / 1e6
        yield record


def _record(case: Case, provider: str, **facts: object) -> Record:
    return {"case": case.name, "width": case.width, "provider": provider, **facts}


def line(record: Mapping[str, object]) -> str:
    """A record as one line for people."""
    head = f"{record['case']:34s} {record['width']:5d} {record['provider']:42s}"
    for kind in ("failed", "missing"):
        if kind in record:
            return f"{head} {kind}: {record[kind]}"
    ratio, floor = record.get("speed_over_best_obvious"), record.get("fraction_of_floor")
    return (
        f"{head} {record['ms']:9.3f} ms  error {record['error']:.1e}"
        + (f"  {ratio:5.2f}x" if ratio else "")
        + (f"  floor {floor:.2f}" if floor else "")
        + ("" if record["accurate"] else "  inaccurate")
    )
