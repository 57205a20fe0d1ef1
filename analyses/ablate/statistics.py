"""Paired comparison of per-sample losses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Paired:
    """Change of the loss against no ablation.

    Attributes:
        mean_delta: mean over samples of loss - baseline, nats a token.
        percent: mean_delta in percent of the mean baseline loss.
        percent_low: lower end of the bootstrap interval on `percent`.
        percent_high: upper end.
        t: paired t statistic; None where every sample changes by the same amount.
        p: two-sided, n - 1 degrees of freedom.
        n: samples.
    """

    mean_delta: float
    percent: float
    percent_low: float
    percent_high: float
    t: float | None
    p: float | None
    n: int


def paired(baseline: Float, loss: Float, *, draws: int, level: float, seed: int) -> Paired:
    """Compare `loss` with `baseline`, both [n] for the same samples in the same order.

    The interval is the percentile bootstrap over samples of mean(loss - baseline) / mean(baseline).
    """
    from scipy.stats import ttest_rel

    delta = loss - baseline
    n = len(delta)
    t = p = None
    if n > 1 and np.ptp(delta) > 0:
        test = ttest_rel(loss, baseline)
        t, p = float(test.statistic), float(test.pvalue)
    rng = np.random.default_rng(seed)
    ratios = []
    for start in range(0, draws, _CHUNK):
        index = rng.integers(n, size=(min(_CHUNK, draws - start), n))
        ratios.append(delta[index].mean(1) / baseline[index].mean(1))
    low, high = 100 * np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return Paired(
        mean_delta=float(delta.mean()),
        percent=float(100 * delta.mean() / baseline.mean()),
        percent_low=float(low),
        percent_high=float(high),
        t=t,
        p=p,
        n=n,
    )
