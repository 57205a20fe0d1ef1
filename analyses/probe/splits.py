"""Which samples a probe is fitted to and which it is tested on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import ProbeConfig

Codes = NDArray[np.int64]
Split = tuple[Codes, Codes]


def splits(codes: Codes, config: ProbeConfig, groups: Codes | None = None) -> Iterator[tuple[int, Split]]:
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


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One fit on the training rows of a split.

    Attributes:
        codes: classes of the rows used, 0..len(present)-1.
        present: the classes that these stand for, at least two.
        rows: which training rows are used; None for all.
        held: which training rows to score; None for the test rows.
    """

    codes: Codes
    present: Codes
    rows: Codes | None = None
    held: Codes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One seed of a cell: the fit, one on random labels where they are wanted, and one a calibration fold.

    Attributes:
        seed: of the split.
        train: rows of the store to fit to.
        test: rows of the store to test on.
        codes: classes 0..K-1 of the training and of the test rows.
        control: random classes of both, or None.
        requests: the fit, the fit to random classes if any, then the folds.
    """

    seed: int
    train: Codes
    test: Codes
    codes: tuple[Codes, Codes]
    control: tuple[Codes, Codes] | None
    requests: tuple[Request, ...]


def tasks(
    keep: Codes, codes: Codes, config: ProbeConfig, groups: Codes | None = None, kinds: Codes | None = None
) -> list[Task]:
    """The fits of a cell, one task a seed.

    Args:
        keep: rows of the store that have a class [n].
        codes: their classes 0..K-1 [n].
        config: the options.
        groups: groups that no split divides [n], or None.
        kinds: for the control task, what a random class is drawn for [n]: equal numbers get the same one.
    """
    out = []
    for seed, (train, test) in splits(codes, config, groups):
        requests = [_request(codes[train])]
        control = None
        if config.control is not None:
            shuffled = random_classes(codes, seed, kinds)
            control = (shuffled[train], shuffled[test])
            requests.append(_request(shuffled[train]))
        inner = _folds(codes[train], config.calibration, seed, None if groups is None else groups[train])
        for rows, held in inner:
            requests.append(_request(codes[train][rows], rows, held))
        pair = (codes[train], codes[test])
        out.append(Task(seed, keep[train], keep[test], pair, control, tuple(requests)))
    return out


def random_classes(codes: Codes, seed: int, kinds: Codes | None = None) -> Codes:
    """The classes shuffled over the samples, or one class a kind, drawn by the classes' frequencies.

    Source: Hewitt and Liang, "Designing and interpreting probes with control tasks", EMNLP 2019.
    """
    rng = np.random.default_rng(seed)
    if kinds is None:
        return rng.permutation(codes)
    _, kind = np.unique(kinds, return_inverse=True)
    return np.asarray(rng.choice(codes, size=int(kind.max()) + 1)[kind])


def _request(codes: Codes, rows: Codes | None = None, held: Codes | None = None) -> Request:
    present, compact = np.unique(codes, return_inverse=True)
    return Request(compact.astype(np.int64), present, rows, held)


def _folds(codes: Codes, count: int, seed: int, groups: Codes | None) -> list[Split]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if count == 0:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer samples than folds is absent from some: allowed
        if groups is not None:
            return list(
                StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(codes, codes, groups)
            )
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(codes, codes))
