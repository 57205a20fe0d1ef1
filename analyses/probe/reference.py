"""The reference solver: scikit-learn's L-BFGS on rows z-scored by its StandardScaler."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .splits import Codes, Request


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What a fit says of the rows to score.

    Attributes:
        logits: of the classes that the fitted rows have, fp64 [m, len(request.present)].
        iterations: of L-BFGS.
        converged: the gradient fell to the tolerance before the iterations were used up.
        gradient: max |gradient of the mean loss| reached; None where the solver does not say.
        audit: the same in fp64 from the weights; None where it was not computed.
    """

    logits: NDArray[np.float64]
    iterations: int
    converged: bool
    gradient: float | None = None
    audit: float | None = None


def fit_reference(
    x: NDArray[np.float32],
    train: Codes,
    test: Codes,
    requests: Sequence[Request],
    strengths: Sequence[float],
    *,
    tol: float,
    max_iter: int,
) -> list[Fitted]:
    """Fit every request of one split with scikit-learn.

    Args:
        x: rows of a hook point [N, d].
        train: rows to fit to; every request takes all or some of them.
        test: rows to test on.
        requests: the fits.
        strengths: C of each.
        tol: largest |gradient of the mean loss| to stop at.
        max_iter: iterations to stop at.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    z = scaler.fit_transform(x[train])
    tested = scaler.transform(x[test])
    out = []
    for request, strength in zip(requests, strengths, strict=True):
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=max_iter, tol=tol)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what did not converge is noted in the cell
            model.fit(z if request.rows is None else z[request.rows], request.codes)
        scores = model.decision_function(tested if request.held is None else z[request.held])
        iterations = int(np.max(model.n_iter_))
        out.append(Fitted(with_both(scores), iterations, iterations < max_iter))
    return out


def with_both(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logits [m, K] of decision values, which are [m] for two classes."""
    wide = np.asarray(scores, dtype=np.float64)
    return np.stack([np.zeros_like(wide), wide], axis=1) if wide.ndim == 1 else wide
