"""A lower bound on I(Z;S) from a cross-fitted, calibrated linear probe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Codes = NDArray[np.int64]

_INNER = 0.25
_LONGEST = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Information:
    """What a probe knows of a label, sample by sample, every sample held out once.

    Attributes:
        values: log p(s | z) - log p(s), nats [n]; their mean is H(S) - cross-entropy, a lower bound on I(Z;S) in
            expectation.
        entropy: H(S), plug-in, nats.
        accuracy: share of the samples whose most probable class is theirs.
        trust: weights a of the folds, see `probe_information`.
    """

    values: Float
    entropy: float
    accuracy: float
    trust: tuple[float, ...]


def probe_information(
    x: NDArray[np.float32], codes: Codes, *, folds: int, C: float, seed: int, groups: Codes | None = None
) -> Information:
    """Cross-entropy of an l2 logistic regression on z-scored rows, held out by folds.

    A probe of n rows in d > n dimensions is far too sure of itself, and its cross-entropy says little about what
    is there. So its log-likelihood ratio is weighted, p(s | z) ~ p(s) (p_probe(s | z) / p(s))^a, with a in [0, 4]
    that minimises the cross-entropy of an inner held-out part of the training fold: a = 0 is the prior, hence no
    information, and a = 1 the probe as it is.

    Args:
        x: one row a sample [n, d].
        codes: classes 0..K-1 [n], each with at least `folds` samples.
        folds: stratified folds.
        C: inverse l2 strength.
        seed: of the folds.
        groups: samples of one group stay on one side of every split [n].
    """
    prior = np.bincount(codes) / len(codes)
    log_p = np.full((len(codes), len(prior)), np.nan)
    trust = []
    for train, test in _folds(codes, groups, folds, seed):
        log_p[test], a = _held_out(x, codes, train, test, prior, groups, folds=folds, C=C, seed=seed)
        trust.append(a)
    return _known(log_p, codes, prior, trust)


def split_information(
    x: NDArray[np.float32],
    codes: Codes,
    train: Codes,
    test: Codes,
    *,
    folds: int,
    C: float,
    seed: int,
    groups: Codes | None = None,
) -> Information:
    """The same of the samples `test` from a probe fitted to the samples `train`; log p(s) of the former.

    Args:
        x: one row a sample [n, d].
        codes: classes 0..K-1 [n], every one among `test`.
        train: samples to fit to and to calibrate on.
        test: samples that the values are of.
        folds: of the calibration.
        C: inverse l2 strength.
        seed: of the folds.
        groups: samples of one group stay on one side of the calibration's split [n].
    """
    prior = np.bincount(codes[test]) / len(test)
    log_p, a = _held_out(x, codes, train, test, prior, groups, folds=folds, C=C, seed=seed)
    return _known(log_p, codes[test], prior, [a])


def _held_out(
    x: NDArray[np.float32],
    codes: Codes,
    train: Codes,
    test: Codes,
    prior: Float,
    groups: Codes | None,
    *,
    folds: int,
    C: float,
    seed: int,
) -> tuple[Float, float]:
    """(log p of the classes of the test samples, weight that the calibration chose)."""
    inner, held = next(_folds(codes[train], None if groups is None else groups[train], _inner(folds), seed))
    a = _weight(_ratios(x, codes, train[inner], train[held], prior, C), codes[train[held]], prior)
    return _posterior(_ratios(x, codes, train, test, prior, C), prior, a), a


def _known(log_p: Float, codes: Codes, prior: Float, trust: list[float]) -> Information:
    return Information(
        values=log_p[np.arange(len(codes)), codes] - np.log(prior)[codes],
        entropy=float(-(prior * np.log(prior)).sum()),
        accuracy=float((log_p.argmax(axis=1) == codes).mean()),
        trust=tuple(trust),
    )


def _folds(codes: Codes, groups: Codes | None, folds: int, seed: int) -> Any:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer members than folds: some folds lack it
        if groups is not None:
            yield from StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
                codes, codes, groups
            )
        else:
            yield from StratifiedKFold(folds, shuffle=True, random_state=seed).split(codes, codes)


def _inner(folds: int) -> int:
    return min(folds, round(1 / _INNER))


def _ratios(x: NDArray[np.float32], codes: Codes, train: Codes, test: Codes, prior: Float, C: float) -> Float:
    """log p_probe(k | z) - log p(k) of the test rows [m, K]; classes that the training part lacks get 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    model = LogisticRegression(C=C, solver="lbfgs", max_iter=_LONGEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(scaler.fit_transform(x[train]), codes[train])
    found = np.zeros((len(test), len(prior)))
    log_p = np.maximum(model.predict_log_proba(scaler.transform(x[test])), -700)
    found[:, model.classes_] = log_p - np.log(prior)[model.classes_]
    return found


def _posterior(ratios: Float, prior: Float, a: float) -> Float:
    scores = a * ratios + np.log(prior)
    top = scores.max(axis=1, keepdims=True)
    return np.asarray(scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True)))


def _weight(ratios: Float, codes: Codes, prior: Float) -> float:
    from scipy.optimize import minimize_scalar

    own = np.arange(len(codes))

    def loss(a: float) -> float:
        return -float(_posterior(ratios, prior, a)[own, codes].mean())

    found = minimize_scalar(loss, bounds=(0.0, 4.0), method="bounded", options={"xatol": 1e-4})
    return min((loss(0.0), 0.0), (float(found.fun), float(found.x)))[1]
