"""From scores to generalised mutual information; arrays only, no models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# log10 of the scales that are tried: beyond 1e4 a score that tells anything apart decides alone.
_LOG_SCALES = (-4.0, 4.0)


@dataclass(frozen=True, slots=True, eq=False)
class Contributions:
    """GMI of a block or a data set, sample by sample.

    Attributes:
        values: l(z, y) - log mean over alternatives of exp l(z', y), nats [n].
        bias: estimate of what the finite number of alternatives adds to each value [n].
    """

    values: Float
    bias: Float


def clip(scores: Float, tokens: NDArray[np.int64], vocabulary: int, *, total: bool) -> Float:
    """Scores not below those of a uniform decoder: log 1/V a token, m log 1/V for a total of m tokens."""
    floor = -np.log(vocabulary) * (tokens if total else np.ones_like(tokens))
    return np.asarray(np.maximum(scores, floor))


def contributions(scores: Float, allowed: NDArray[np.bool_]) -> Contributions:
    """l_ii - log mean_{j in A_i} exp l_ij for targets i (rows) and rows z_j (columns) of a block.

    Args:
        scores: l_ij, the score of target i under the rows of sample j [b, b].
        allowed: which j are alternatives for target i [b, b]; a target without any has NaN.

    The logarithm of a mean of K weights w is below that of the expectation by about var(w) / (2 K mean(w)^2) in
    expectation, so the value is above by that: `bias`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.where(allowed, scores, -np.inf).max(axis=1, keepdims=True)
        weights = np.exp(np.where(allowed, scores - top, -np.inf))
        count = allowed.sum(axis=1)
        mean = weights.sum(axis=1) / count
        spread = np.where(allowed, np.square(weights - mean[:, None]), 0.0).sum(axis=1) / (count - 1)
        values = np.diag(scores) - (top[:, 0] + np.log(mean))
        bias = np.where(count > 1, spread / (2 * count * mean**2), np.nan)
    return Contributions(np.where(count > 0, values, np.nan), np.where(count > 0, bias, np.nan))


def label_contributions(scores: Float, codes: NDArray[np.int64], prior: Float, scale: float) -> Float:
    """s l(z, s_true) - log sum_k p_k exp(s l(z, s_k)), nats [n], from scores [n, K] of every label."""
    scaled = scale * scores
    top = scaled.max(axis=1, keepdims=True)
    partition = top[:, 0] + np.log(np.exp(scaled - top) @ prior)
    return np.asarray(scaled[np.arange(len(codes)), codes] - partition)


def best_scale(scores: Float, codes: NDArray[np.int64], prior: Float) -> tuple[float, float]:
    """(GMI, s): the supremum over s > 0 of the mean contribution, which is concave in s and 0 at s = 0.

    Scores that do not depend on the label give (0, smallest s). Bounded scalar search over log10 s.
    """
    from scipy.optimize import minimize_scalar

    def loss(power: float) -> float:
        return -float(label_contributions(scores, codes, prior, 10.0**power).mean())

    # concave in s: unimodal in log s, so one bounded search from a grid's best cell finds the top
    grid = np.linspace(*_LOG_SCALES, 33)
    values = [loss(power) for power in grid]
    at = int(np.argmin(values))
    low, high = grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    value, power = min((float(found.fun), float(found.x)), (values[at], float(grid[at])))
    if -value <= 0:
        return 0.0, 10.0 ** _LOG_SCALES[0]
    return -value, 10.0**power
