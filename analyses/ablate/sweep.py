"""Every mode removed alone, with control of the many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.align import Modes

from .config import AblateConfig

Float = NDArray[np.float64]

_CHUNK = 100


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """Change of the loss when each mode is removed alone; one entry a mode [K].

    Attributes:
        modes: mode numbers.
        rho: their alignment; NaN under the noise floor.
        variance: share of the whole variance.
        delta: mean over samples of the change, nats a token.
        percent: delta in percent of the mean loss without ablation.
        percent_low: lower end of the bootstrap interval, for this mode alone.
        percent_high: upper end.
        t: paired t statistic; NaN where every sample changes by the same amount.
        p: two-sided p value.
        p_holm: adjusted so that the chance of any false finding stays below a level (Holm).
        q_bh: adjusted so that the expected share of false findings does (Benjamini and Hochberg).
    """

    modes: NDArray[np.int64]
    rho: Float
    variance: Float
    delta: Float
    percent: Float
    percent_low: Float
    percent_high: Float
    t: Float
    p: Float
    p_holm: Float
    q_bh: Float

    def found(self, level: float = 0.05) -> NDArray[np.int64]:
        """Modes whose removal changes the loss, false findings held at `level` (q_bh), strongest first."""
        hit = np.flatnonzero(self.q_bh <= level)
        return np.asarray(self.modes[hit[np.argsort(-np.abs(self.delta[hit]), kind="stable")]])


def sweep_of(
    modes: Modes, alone: Sequence[int], baseline: Float, losses: Float, config: AblateConfig
) -> Sweep:
    """Paired comparisons of losses [K, n] with the baseline [n]."""
    index = np.asarray(alone, dtype=np.int64)
    delta = losses - baseline
    mean, n = delta.mean(axis=1), len(baseline)
    spread = np.ptp(delta, axis=1) > 0
    t, p = np.full(len(index), np.nan), np.full(len(index), np.nan)
    if spread.any():
        from scipy.stats import ttest_1samp

        test = ttest_1samp(delta[spread], 0.0, axis=1)
        t[spread], p[spread] = test.statistic, test.pvalue
    # a change that is the same for all samples: none at all, or beyond any doubt
    p[~spread] = np.where(mean[~spread] == 0, 1.0, 0.0)
    ends = _interval(delta, baseline, config)
    return Sweep(
        modes=index,
        rho=modes.rho[index],
        variance=modes.eigenvalues[index] / modes.eigenvalues.sum(),
        delta=mean,
        percent=100 * mean / baseline.mean() if n else mean,
        percent_low=100 * ends[0],
        percent_high=100 * ends[1],
        t=t,
        p=p,
        p_holm=holm(p),
        q_bh=benjamini_hochberg(p),
    )


def holm(p: Float) -> Float:
    """Holm's adjusted p values: max over smaller p_(i) of (m - i) p_(i), at most 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    out = np.empty_like(p)
    out[order] = np.minimum(stepped, 1.0)
    return out


def benjamini_hochberg(p: Float) -> Float:
    """Benjamini and Hochberg's adjusted p values."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p, method="bh"))


def _interval(delta: Float, baseline: Float, config: AblateConfig) -> Float:
    """Percentile interval of mean(delta) / mean(baseline) for every mode, [2, K], the same resamples for all."""
    rng, n = np.random.default_rng(config.seed), len(baseline)
    ratios = []
    for start in range(0, config.draws, _CHUNK):
        drawn = rng.integers(n, size=(min(_CHUNK, config.draws - start), n))
        weight = np.stack([np.bincount(row, minlength=n) for row in drawn]).astype(np.float64)
        ratios.append((weight @ delta.T) / (weight @ baseline)[:, None])
    ends = [(1 - config.level) / 2, (1 + config.level) / 2]
    return np.asarray(np.quantile(np.concatenate(ratios), ends, axis=0))
