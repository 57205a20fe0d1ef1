"""Maximum mean discrepancy, linear CKA, and the dimensions that carry a variance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .transport import Estimate

Float = NDArray[np.float64]

_MEDIAN_ROWS = 500


def bandwidth(x: Float, y: Float) -> float:
    """sigma^2 of the RBF kernel by the median heuristic: median squared distance of the first 500 rows a side."""
    from scipy.spatial.distance import pdist

    joint = np.concatenate([x[:_MEDIAN_ROWS], y[:_MEDIAN_ROWS]])
    return float(np.median(pdist(joint, "sqeuclidean")))


def mmd2(x: Float, y: Float, sigma2: float, *, level: float) -> Estimate:
    """Unbiased MMD^2 under exp(-|a - b|^2 / (2 sigma^2)), with a jackknife interval.

    Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3. It is a two-sample U-statistic: leaving
    one row out needs row sums only, and the jackknife variance of both sides adds up (Arvesen 1969). A
    bootstrap would be biased, for a row drawn twice has the kernel 1 with itself.

    Args:
        x: [n, k], n at least 3. y: [m, k], m at least 3.
        sigma2: sigma^2.
        level: coverage of the interval, normal.
    """
    from scipy.spatial.distance import cdist
    from scipy.stats import norm

    def kernel(a: Float, b: Float) -> Float:
        found = cdist(a, b, "sqeuclidean")
        found /= -2 * sigma2
        return np.asarray(np.exp(found, out=found))

    n, m = len(x), len(y)
    across = kernel(x, y)
    own = [kernel(side, side).sum(1) - 1.0 for side in (x, y)]
    total = [float(row.sum()) for row in own]
    cross = float(across.sum())
    inside = [total[0] / (n * (n - 1)), total[1] / (m * (m - 1))]
    value = inside[0] + inside[1] - 2 * cross / (n * m)
    without = (
        (total[0] - 2 * own[0]) / ((n - 1) * (n - 2))
        + inside[1]
        - 2 * (cross - across.sum(1)) / ((n - 1) * m),
        (total[1] - 2 * own[1]) / ((m - 1) * (m - 2))
        + inside[0]
        - 2 * (cross - across.sum(0)) / (n * (m - 1)),
    )
    variance = sum((len(v) - 1) / len(v) * float(((v - v.mean()) ** 2).sum()) for v in without)
    half = float(norm.ppf((1 + level) / 2)) * np.sqrt(variance)
    return Estimate(value, value - half, value + half)


def mmd2_features(count_x: int, total_x: Float, count_y: int, total_y: Float) -> float:
    """Unbiased MMD^2 of all rows from summed features of norm one (`FourierFeatures`).

    Args:
        count_x: rows n. total_x: summed features [2F]. count_y, total_y: of the other law.
    """
    inside = [(float(t @ t) - n) / (n * (n - 1)) for n, t in ((count_x, total_x), (count_y, total_y))]
    return inside[0] + inside[1] - 2 * float(total_x @ total_y) / (count_x * count_y)


def linear_cka(cross: Float, cov_x: Float, cov_y: Float) -> float:
    """Linear CKA of paired rows, |S_xy|^2 / (|S_x| |S_y|) in Frobenius norms, in [0, 1].

    Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019.
    From covariances, so the rows never meet. With fewer rows than channels it is biased towards 1.

    Args:
        cross: [p, q] cross-covariance. cov_x: [p, p]. cov_y: [q, q].

    Raises:
        ValueError: one side does not vary.
    """
    scale = float(np.linalg.norm(cov_x)) * float(np.linalg.norm(cov_y))
    if not scale > 0:
        raise ValueError("one side has the same row for every sample, so CKA is undefined")
    return float(np.linalg.norm(cross)) ** 2 / scale


def participation_ratio(covariance: Float) -> float:
    """(tr S)^2 / tr S^2: the number of dimensions that carry the variance, from 1 to d."""
    square = float(np.linalg.norm(covariance)) ** 2
    return float(np.trace(covariance)) ** 2 / square if square > 0 else 0.0
