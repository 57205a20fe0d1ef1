"""One cell of the grid: l2 logistic regression on z-scored rows, over several splits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import ProbeConfig

# Multiply-adds of one pass over the rows below which threads cost more than they save: each of L-BFGS's hundreds of
# passes wakes them. Measured on two busy cores, 1,152 x 128 with 8 classes: 0.2 s on one thread, 17 s on two.
_THREADED = 2**26

Split = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Scores:
    """One seed's test scores."""

    seed: int
    accuracy: float
    macro_f1: float
    converged: bool
    n_train: int
    n_test: int


def splits(
    codes: NDArray[np.int64], config: ProbeConfig, groups: NDArray[np.int64] | None = None
) -> Iterator[tuple[int, Split]]:
    """(seed, (train, test)) indices of the stratified splits; the same for the same codes at every point.

    By default each seed is its own split; the paper's scripts draw all from one generator seeded with the
    first. With `groups` [n], a split is one fold of round(1 / test_fraction), and no group is on both sides.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    if groups is not None:
        folds = max(2, round(1 / config.test_fraction))
        for seed in config.seeds:
            grouped = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
            yield seed, next(grouped.split(codes, codes, groups))
        return

    if config.law == "paper":
        sampler = StratifiedShuffleSplit(
            n_splits=len(config.seeds), train_size=1 - config.test_fraction, random_state=config.seeds[0]
        )
        yield from zip(config.seeds, sampler.split(codes, codes), strict=True)
        return
    for seed in config.seeds:
        sampler = StratifiedShuffleSplit(n_splits=1, test_size=config.test_fraction, random_state=seed)
        yield seed, next(sampler.split(codes, codes))


def fit_cell(
    x: NDArray[np.float32],
    codes: NDArray[np.int64],
    config: ProbeConfig,
    groups: NDArray[np.int64] | None = None,
) -> list[Scores]:
    """Scores of every seed for rows `x` [n, d] and classes `codes` [n]; `groups` [n] as in `splits`.

    Seeds run on `config.n_jobs` threads; large problems get an equal share of the cores each for their linear
    algebra, small ones one core. A running seed holds one z-scored copy of the rows.
    """
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    jobs = min(config.n_jobs, len(config.seeds))
    work = x.size * (int(codes.max()) + 1)
    threads = max(1, (os.cpu_count() or 1) // jobs) if work >= _THREADED else 1
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # non-convergence is counted below, per seed
        found: list[Scores] = Parallel(n_jobs=jobs, prefer="threads")(
            delayed(_fit)(x, codes, seed, split, config) for seed, split in splits(codes, config, groups)
        )
    return found


def _fit(
    x: NDArray[np.float32], codes: NDArray[np.int64], seed: int, split: Split, config: ProbeConfig
) -> Scores:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import StandardScaler

    train, test = split
    scaler = StandardScaler()
    model = LogisticRegression(
        C=config.strength(len(train)), solver="lbfgs", max_iter=config.iterations, tol=1e-4
    )
    model.fit(scaler.fit_transform(x[train]), codes[train])
    guess = model.predict(scaler.transform(x[test]))
    return Scores(
        seed=seed,
        accuracy=float(accuracy_score(codes[test], guess)),
        macro_f1=float(f1_score(codes[test], guess, average="macro", zero_division=0.0)),
        converged=bool(np.max(model.n_iter_) < config.iterations),
        n_train=len(train),
        n_test=len(test),
    )
