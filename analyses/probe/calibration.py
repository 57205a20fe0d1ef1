"""Cross-entropy of a probe after calibration inside the training part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .splits import Codes

Float = NDArray[np.float64]

_LONGEST = 4.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Held-out cross-entropies of one fit.

    Attributes:
        cross_entropy: after calibration, mean over the test samples, nats.
        uncalibrated: the same of the probabilities as fitted.
        trust: a, the weight of the probe's log-likelihood ratio (an inverse temperature); 0 is the prior alone.
    """

    cross_entropy: float
    uncalibrated: float
    trust: float


def calibrated(
    test: tuple[Float, Codes, Codes],
    folds: Sequence[tuple[Float, Codes, Codes]],
    train: Codes,
    classes: int,
) -> Calibrated:
    """Cross-entropy on the test samples under p(s | z) ~ p(s) (p_probe(s | z) / p(s))^a.

    Probes of few rows in many dimensions are far too sure of themselves. The one free number a in [0, 4] is
    that of least cross-entropy on training samples held out by folds, so no test sample is looked at. The prior
    is the training part's frequencies with half a sample added to each class.

    Args:
        test: (logits [m, k], the k classes they are of, classes of the m rows) of the test samples.
        folds: the same of the held-out training samples, one entry a fold.
        train: classes of the training samples.
        classes: K.
    """
    prior = np.log((np.bincount(train, minlength=classes) + 0.5) / (len(train) + 0.5 * classes))
    inner = np.concatenate([log_ratios(logits, present, prior) for logits, present, _ in folds])
    own = np.concatenate([codes for _, _, codes in folds])
    trust = best_trust(inner, own, prior)
    outer = log_ratios(test[0], test[1], prior)
    return Calibrated(
        cross_entropy(outer, test[2], prior, trust), cross_entropy(outer, test[2], prior, 1.0), trust
    )


def log_ratios(logits: Float, present: Codes, prior: Float) -> Float:
    """log p_probe(k | z) - log p(k) [m, K]; 0 for classes that the fitted rows lack."""
    found = np.zeros((len(logits), len(prior)))
    found[:, present] = _log_softmax(logits) - prior[present]
    return found


def best_trust(ratios: Float, codes: Codes, prior: Float) -> float:
    """The weight in [0, 4] of least cross-entropy (convex in it)."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda a: cross_entropy(ratios, codes, prior, a),
        bounds=(0.0, _LONGEST),
        method="bounded",
        options={"xatol": 1e-3},
    )
    value = float(found.x)
    return value if found.fun < cross_entropy(ratios, codes, prior, 0.0) else 0.0


def cross_entropy(ratios: Float, codes: Codes, prior: Float, trust: float) -> float:
    """Mean of -log p(own class), nats."""
    log_p = _log_softmax(trust * ratios + prior)
    return -float(log_p[np.arange(len(codes)), codes].mean())


def entropy(codes: Codes) -> float:
    """H(S), plug-in, nats."""
    share = np.bincount(codes) / len(codes)
    share = share[share > 0]
    return -float((share * np.log(share)).sum())


def _log_softmax(scores: Float) -> Float:
    from scipy.special import log_softmax

    return np.asarray(log_softmax(scores, axis=1))
