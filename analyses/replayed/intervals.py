"""Percentile bootstrap over samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval; low and high are None where no interval can be had."""

    value: float
    low: float | None = None
    high: float | None = None


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Float],
    n: int,
    *,
    draws: int,
    level: float,
    seed: int,
) -> tuple[Float, Float]:
    """Ends of the percentile interval of a statistic over resampled samples.

    Args:
        statistic: called with sample numbers [b, n] of b resamples; its values [b] or [b, k].
        n: samples.
        draws: resamples.
        level: coverage.
        seed: of the resampling: the same seed and n give the same resamples.

    Returns:
        (low, high), each a scalar array or [k]; NaN resamples are ignored.
    """
    rng = np.random.default_rng(seed)
    sizes = [min(_CHUNK, draws - start) for start in range(0, draws, _CHUNK)]
    values = np.concatenate([statistic(rng.integers(n, size=(size, n))) for size in sizes])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.asarray(low), np.asarray(high)


def mean_interval(values: Float, *, draws: int, level: float, seed: int) -> Estimate:
    """Mean of `values` [n] with its bootstrap interval."""
    if len(values) < 2:
        return Estimate(float(values.mean()) if len(values) else float("nan"))
    low, high = bootstrap(
        lambda index: values[index].mean(axis=1), len(values), draws=draws, level=level, seed=seed
    )
    return Estimate(float(values.mean()), float(low), float(high))
