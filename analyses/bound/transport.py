"""Exact transport distances between samples of equal size, and the constants of the bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def w1(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Wasserstein-1 distance of the empirical laws of rows [n, d] and [n, d], Euclidean cost.

    Between laws of n equal weights the optimal plan is a permutation (Birkhoff), so an assignment solves it
    exactly. In many dimensions the distance of two finite samples of one law is far from 0: compare with that.

    Raises:
        ValueError: another number of rows on the two sides.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if len(a) != len(b) or not len(a):
        raise ValueError(f"rows: got {len(a)} and {len(b)}, expected as many on both sides")
    cost = cdist(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())


def log10_prefactor(L: float, D: float) -> float:
    """log10((1 + exp(L D)) L), without overflow (Theorem 2)."""
    if not L > 0:
        return float("-inf")
    return float(np.logaddexp(0.0, L * D) / np.log(10) + np.log10(L))


def softmax_lipschitz(weights: Float) -> float:
    """Lipschitz constant of z -> log h(s | z) for every class s of a linear softmax probe, weights [K, d].

    grad log h(s | z) = w_s - sum_k h(k | z) w_k lies within the convex hull of w_s - w_k: its norm is at most
    the largest distance between two rows, which saturated probes reach.
    """
    gaps = weights[:, None, :] - weights[None, :, :]
    return float(np.sqrt(np.square(gaps).sum(axis=-1)).max())
