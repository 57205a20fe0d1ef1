"""pytest-benchmark entry points: one test a provider, gated as in the registry.

    python -m pytest bench/test_bench.py -k "covariance and dask"

MODEGAP_BENCH_DEVICE (cpu) and MODEGAP_BENCH_WIDTH (1024) choose where and at which width. `modegap bench` is what
the published figures come from: it interleaves the providers and measures the ceilings beside them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from bench.harness import Case
from bench.registry import Family, select

DEVICE = os.environ.get("MODEGAP_BENCH_DEVICE", "cpu")
WIDTH = int(os.environ.get("MODEGAP_BENCH_WIDTH", "1024"))
PROBE_WIDTH = 512
"""A case's providers are known once it is built, which is quick at this width."""
SECONDS = 10.0
"""At most, for the rounds of one provider."""


@lru_cache(maxsize=1)  # one family's inputs in memory at a time: tests run in the order of the families
def built(family: Family) -> dict[str, Case]:
    return {case.name: case for case in family.cases(WIDTH)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    width = min(PROBE_WIDTH, WIDTH) if DEVICE == "cpu" else WIDTH
    found = [
        (family, case.name, provider)
        for family in select(DEVICE)
        for case in family.cases(width)
        for provider in case.providers
    ]
    metafunc.parametrize(
        ("family", "case", "provider"), found, ids=[f"{family.name}: {c}: {p}" for family, c, p in found]
    )


@pytest.mark.timeout(600)
def test_provider(family: Family, case: str, provider: str, benchmark: Callable[..., object]) -> None:
    measured = built(family)[case]
    if provider not in measured.providers:
        pytest.skip(measured.missing[provider])
    calls = measured.providers[provider]
    start = time.perf_counter()
    first = calls[0]()
    took = time.perf_counter() - start
    error = measured.error(first)
    if provider not in measured.inaccurate:
        assert error <= measured.tolerance
    benchmark.group = f"{case}, width {WIDTH}"
    benchmark.extra_info.update(error=error, bytes=measured.bytes, flops=measured.flops)
    turn = iter(range(10**9))

    def call() -> None:
        calls[next(turn) % len(calls)]()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(call, rounds=max(1, min(measured.repeats, int(SECONDS / took))))
