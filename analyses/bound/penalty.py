"""Theorem 3: what a probe loses between the two laws."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.distance.transport import w1
from modegap.analyses.probe.labels import LabelProblem, categories

from .config import BoundConfig
from .constants import softmax_lipschitz
from .outcome import Penalty

Float = NDArray[np.float64]
Rows = NDArray[np.float32]


def penalty(
    label: str,
    modal: tuple[Rows, list[object]],
    text: tuple[Rows, list[object]],
    config: BoundConfig,
    L: float,
) -> Penalty:
    """|E_M log h(S | Z) - E_T log h(S | Z)| and L_h E_S[W1(P_M(. | S), P_T(. | S))].

    The probe h is fitted on modal rows; both sides of the inequality are then taken on the same held-out rows, as
    many a class from each law, so that it must hold exactly.

    Args:
        label: name of the label.
        modal: mean rows [n, d] and label values of the modal law.
        text: the same of the text law.
        config: the options.
        L: L_log, for the ratio to L_h.
    """
    try:
        return _penalty(label, modal, text, config, L)
    except LabelProblem as problem:
        return Penalty(label, message=str(problem))


def _penalty(
    label: str,
    modal: tuple[Rows, list[object]],
    text: tuple[Rows, list[object]],
    config: BoundConfig,
    L: float,
) -> Penalty:
    from scipy.special import logsumexp
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    classes = categories([*modal[1], *text[1]])  # type: ignore[list-item]
    codes, other = classes.codes[: len(modal[1])], classes.codes[len(modal[1]) :]
    rng = np.random.default_rng(config.seed)
    train: list[int] = []
    mine: list[int] = []
    theirs: list[int] = []
    distances, weights, known = [], [], []
    for code in range(len(classes.names)):
        members = rng.permutation(np.flatnonzero(codes == code))
        facing = rng.permutation(np.flatnonzero(other == code))
        held = min(round(config.test_fraction * len(members)), len(facing), config.rows)
        if held < 1 or len(members) - held < 1:
            continue
        train += members[held:].tolist()
        mine += members[:held].tolist()
        theirs += facing[:held].tolist()
        distances.append(_w1(modal[0][members[:held]], text[0][facing[:held]]))
        weights.append(held)
        known.append(classes.names[code])
    if len(known) < 2:
        raise LabelProblem(
            f"{len(known)} classes have samples for training and testing under both laws; two are needed"
        )
    scaler = StandardScaler()
    model = LogisticRegression(C=config.C, solver="lbfgs", max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(scaler.fit_transform(modal[0][train]), codes[train])
    scaled, offsets = (
        np.asarray(model.coef_, dtype=np.float64),
        np.asarray(model.intercept_, dtype=np.float64),
    )
    if len(model.classes_) == 2:  # one row: the difference of the two classes' weights
        scaled, offsets = np.concatenate([-scaled, scaled]) / 2, np.concatenate([-offsets, offsets]) / 2
    L_h = softmax_lipschitz(scaled / scaler.scale_)
    at = {code: i for i, code in enumerate(model.classes_.tolist())}

    def mean_log_h(rows: Rows, of: NDArray[np.int64]) -> float:
        # not predict_log_proba, whose softmax underflows to log 0
        logits = scaler.transform(rows).astype(np.float64) @ scaled.T + offsets
        log_h = logits - logsumexp(logits, axis=1, keepdims=True)
        return float(log_h[np.arange(len(rows)), [at[code] for code in of.tolist()]].mean())

    modal_h, text_h = mean_log_h(modal[0][mine], codes[mine]), mean_log_h(text[0][theirs], other[theirs])
    expected = float(np.average(distances, weights=weights))
    return Penalty(
        label=label,
        n=len(mine),
        classes=len(known),
        L_h=L_h,
        modal=modal_h,
        text=text_h,
        w1=expected,
        bound=L_h * expected,
        ratio=L / L_h if L_h > 0 else None,
    )


def _w1(a: Rows, b: Rows) -> float:
    return w1(a.astype(np.float64), b.astype(np.float64))
