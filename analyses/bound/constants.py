"""The constants of the bounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


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
