"""How the benchmarks check and time: cases, gate, interleaved medians, ceilings.

Each case checks every provider against fp64 first and times none that fails its tolerance (those that are
known to be inaccurate are timed and marked). Providers take turns over rotated random inputs; a spin kernel
in front hides launch latency; medians. The ceilings of "fraction of floor" (copy bandwidth, fp16 and fp64
products) are measured in the same run. Floor: the larger of bytes / copy bandwidth and flops / product rate.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Call = Callable[[], object]


@dataclass
class Case:
    """One operation at one size: providers by name, each a list of calls over rotated inputs.

    `error` maps what the first call of a provider returns to its distance from the oracle; a provider whose
    distance exceeds `tolerance` is not timed unless it is listed in `inaccurate`. The first provider is ours.
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


def measure(providers: dict[str, list[Call]], repeats: int, warm: int = 3) -> dict[str, list[float]]:
    """Milliseconds of every repeat, providers interleaved."""
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


def ceilings() -> dict[str, float]:
    """Copy bandwidth in bytes/s (read + write) and product rates in flop/s."""
    blocks = [torch.randn(2**28, device="cuda").half() for _ in range(2)]
    target = torch.empty_like(blocks[0])
    a, b = torch.randn(8192, 8192, device="cuda").half(), torch.randn(8192, 8192, device="cuda").half()
    c, e = torch.randn(4096, 4096, device="cuda").double(), torch.randn(4096, 4096, device="cuda").double()
    calls: dict[str, list[Call]] = {
        "copy": [lambda x=x: target.copy_(x) for x in blocks],
        "fp16": [lambda: a @ b],
        "fp64": [lambda: c @ e],
    }
    took = {name: statistics.median(t) / 1e3 for name, t in measure(calls, 12).items()}
    return {
        "copy": 4 * 2.0**28 / took["copy"],
        "fp16": 2 * 8192.0**3 / took["fp16"],
        "fp64": 2 * 4096.0**3 / took["fp64"],
    }


def results(case: Case, top: dict[str, float]) -> list[dict[str, object]]:
    """Gate, time, and one record a provider."""
    errors = {}
    for name, calls in case.providers.items():
        errors[name] = case.error(calls[0]())
    own = next(iter(case.providers))
    if not errors[own] <= case.tolerance:
        raise SystemExit(
            f"{case.name} at {case.width}: error {errors[own]:.2g} above {case.tolerance:g}; not timed"
        )
    timed = {
        name: calls
        for name, calls in case.providers.items()
        if errors[name] <= case.tolerance or name in case.inaccurate
    }
    times = measure(timed, case.repeats)
    floor = max(case.bytes / top["copy"], case.flops / top[case.rate]) * 1e3
    others = [statistics.median(t) for name, t in times.items() if not name.startswith("modegap")]
    records = []
    for name, sample in times.items():
        took = statistics.median(sample)
        record: dict[str, object] = {
            "case": case.name,
            "width": case.width,
            "provider": name,
            "ms": took,
            "spread_ms": [min(sample), max(sample)],
            "error": errors[name],
            "accurate": errors[name] <= case.tolerance,
            "speed_over_best_obvious": min(others) / took,
        }
        if floor:
            record["fraction_of_floor"] = floor / took
        if case.flops:
            record["tflops"] = case.flops / took / 1e9
        if case.bytes:
            record["gb_per_s"] = case.bytes / took / 1e6
        records.append(record)
        print(
            f"{case.name:34s} {case.width:5d} {name:42s} {took:9.3f} ms  error {errors[name]:.1e}"
            f"  {min(others) / took:5.2f}x  floor {floor / took:.2f}",
            flush=True,
        )
    return records


def environment(commit: str) -> dict[str, object]:
    """GPU, driver, versions and commit; nothing that names the machine."""
    import cupy
    import triton

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = (
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    )
    return {
        "gpu": name,
        "driver": driver,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cupy": cupy.__version__,
        "commit": commit,
    }
