"""Intervals over seeds, whose splits share most of their samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]


def corrected_interval(values: Sequence[float], test_share: float, level: float) -> Interval | None:
    """Student t interval of a mean over J random splits, or None for fewer than two.

    The variance of the mean is s^2 (1/J + n_test/n_train), for the splits overlap: Nadeau and Bengio,
    "Inference for the generalization error", Machine Learning 52 (2003).

    Args:
        values: one a split.
        test_share: n_test / n_train.
        level: coverage.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + test_share)
    half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * spread
    centre = float(np.mean(values))
    return centre - half, centre + half


def ratio_interval(
    above: Sequence[float], below: Sequence[float], test_share: float, level: float
) -> Interval | None:
    """The same for mean(above) / mean(below), paired by split, by the delta method."""
    if len(above) < 2:
        return None
    top, bottom = np.asarray(above), np.asarray(below)
    ratio, mean = float(top.mean() / bottom.mean()), float(bottom.mean())
    return corrected_interval(list(ratio + (top - ratio * bottom) / mean), test_share, level)


def wilson_interval(share: float, count: int, level: float) -> Interval:
    """Wilson's score interval of a share of `count` independent samples."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
