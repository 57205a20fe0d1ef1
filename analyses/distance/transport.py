"""Wasserstein distances: exact, sliced, and between Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

# Network simplex steps. POT's default of 100,000 is too few for a thousand rows a side in some bootstraps.
_STEPS = 10_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval (NaN ends where none was asked for)."""

    value: float
    low: float
    high: float


def w1(x: Float, y: Float) -> float:
    """Exact 1-Wasserstein distance of two samples, Euclidean cost: the optimum of the transport problem (POT).

    Args:
        x: [n, k]. y: [m, k].
    """
    return _transport(_cost(x, y), np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)))


def w1_bootstrap(
    x: Float, y: Float, *, draws: int, level: float, seed: int, jobs: int, refit: int | None = None
) -> Estimate:
    """W1 of two samples with a bootstrap interval over resampled rows of both.

    In many dimensions the W1 of resamples lies above that of the samples (repeated rows leave more distance to
    cover), and the plain percentile interval above the estimate. The interval is therefore that of the resamples
    moved onto the estimate by their median; `refit`, the published law, has the plain percentiles.

    A resample repeats rows, so it is the same transport problem between the distinct rows, weighted by how
    often they were drawn: 0.4 of the entries, and no new distances.

    Args:
        x: [n, k]. y: [m, k].
        draws: resamples; 0 leaves the interval NaN.
        level: coverage.
        seed: of the resamples.
        jobs: threads.
        refit: dimensions of a joint PCA that every resample fits anew (the published scripts' law); None takes
            distances as they are.
    """
    rng = np.random.default_rng(seed)
    counts = [
        (np.bincount(rng.integers(n, size=n), minlength=n), np.bincount(rng.integers(m, size=m), minlength=m))
        for n, m in [(len(x), len(y))] * draws
    ]
    gram = None if refit is None else _gram(np.concatenate([x, y]))
    cost = _cost(x, y) if refit is None else None

    def once(weights: tuple[NDArray[np.int64], NDArray[np.int64]]) -> float:
        a, b = weights
        i, j = np.flatnonzero(a), np.flatnonzero(b)
        if gram is not None and refit is not None:
            distances = _refitted(gram, a, b, refit)
        else:
            assert cost is not None
            distances = np.ascontiguousarray(cost[np.ix_(i, j)])
        return _transport(distances, a[i] / a.sum(), b[j] / b.sum())

    value = once((np.ones(len(x), np.int64), np.ones(len(y), np.int64)))
    if not draws:
        return Estimate(value, float("nan"), float("nan"))
    with ThreadPoolExecutor(jobs, thread_name_prefix="modegap-w1") as pool:
        found = list(pool.map(once, counts))
    low, middle, high = np.quantile(found, [(1 - level) / 2, 0.5, (1 + level) / 2])
    if refit is None:
        low, high = value + low - middle, value + high - middle
    return Estimate(value, float(low), float(high))


def _cost(x: Float, y: Float) -> Float:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(x, y))


def _transport(cost: Float, a: Float, b: Float) -> float:
    import ot

    # the check of marginals compares sums in floating point; ours are exact counts over n
    return float(ot.emd2(a, b, cost, numItermax=_STEPS, check_marginals=False))


def _gram(rows: Float) -> Float:
    centred = rows - rows.mean(0)
    return np.asarray(centred @ centred.T)


def _refitted(gram: Float, a: NDArray[np.int64], b: NDArray[np.int64], k: int) -> Float:
    """Distances between the distinct rows after a PCA to k dimensions of the resampled rows.

    PCA by inner products: with weights w and G centred by them, the eigenvectors of W^1/2 G W^1/2 give the
    coordinates G W^1/2 v / sqrt(lambda), whatever the width of the rows.
    """
    import scipy.linalg

    weights = np.concatenate([a, b]).astype(np.float64)
    kept = np.flatnonzero(weights)
    w = weights[kept] / weights.sum()
    inner = gram[np.ix_(kept, kept)]
    offset = inner @ w
    inner = inner - offset[:, None] - offset[None, :] + w @ offset
    root = np.sqrt(w)
    top = max(len(kept) - k, 0)
    values, vectors = scipy.linalg.eigh(
        root[:, None] * inner * root[None, :], subset_by_index=(top, len(kept) - 1)
    )
    seen = values > values[-1] * len(kept) * np.finfo(np.float64).eps
    coordinates = inner @ (root[:, None] * vectors[:, seen]) / np.sqrt(values[seen])
    split = np.count_nonzero(a)
    return _cost(coordinates[:split], coordinates[split:])


def sliced_w1(x: Sequence[Any] | Float, y: Sequence[Any] | Float) -> tuple[float, float]:
    """Sliced 1-Wasserstein distance and its Monte-Carlo standard error over the directions.

    The mean over directions of the exact one-dimensional distance of all rows (Rabin, Peyre, Delon and Bernot,
    "Wasserstein Barycenter and Its Application to Texture Mixing", 2011).

    Args:
        x: projections [n, P]; y: projections [m, P] along the same directions.
    """
    from scipy.stats import wasserstein_distance

    left, right = np.asarray(x), np.asarray(y)
    each = np.array([wasserstein_distance(left[:, k], right[:, k]) for k in range(left.shape[1])])
    error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else float("nan")
    return float(each.mean()), float(error)


def gaussian_w2(mean_x: Float, cov_x: Float, mean_y: Float, cov_y: Float) -> float:
    """2-Wasserstein (Bures) distance of the two normal laws of these means and covariances.

    |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (L' S_y L)^1/2 with S_x = L L' by a pivoted Cholesky factorisation,
    which takes covariances of less than full rank. fp64; square root of the above.

    Args:
        mean_x: [d]. cov_x: [d, d]. mean_y: [d]. cov_y: [d, d].
    """
    import scipy.linalg

    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(cov_x, lower=1)
    lower = np.tril(factor)[:, :rank]
    root = np.empty_like(lower)
    root[pivots - 1] = lower
    values = scipy.linalg.eigvalsh(root.T @ cov_y @ root) if rank else np.zeros(0)
    # eigenvalues that are rounding of zero would each add their square root
    values = values[values > len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)]
    shift = float(np.sum((mean_x - mean_y) ** 2))
    squared = shift + float(np.trace(cov_x) + np.trace(cov_y)) - 2 * float(np.sqrt(values).sum())
    return float(np.sqrt(max(squared, 0.0)))
