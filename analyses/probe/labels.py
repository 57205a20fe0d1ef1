"""From a label column to the classes a probe learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modegap.engine.datasets.labels import lexical

Value = str | int | float | None

_FEW_NUMBERS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Classes of the samples.

    Attributes:
        codes: class of each sample, int64 [samples]; -1 leaves the sample out.
        names: class names in the order of the codes.
        notes: how the classes came about and who was left out.
    """

    codes: NDArray[np.int64]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


class LabelProblem(ValueError):
    """A label that cannot be probed; the message says why and is shown in the cell."""


def categories(values: Sequence[Value]) -> Classes:
    """One class a distinct value; None, NaN and blank text are missing."""
    known = [value for value in values if not _missing(value)]
    names = sorted(set(known), key=lambda value: (isinstance(value, str), value))
    index = {name: code for code, name in enumerate(names)}
    codes = np.array([-1 if _missing(v) else index[v] for v in values], dtype=np.int64)
    return Classes(codes, tuple(map(str, names)))


def tertiles(values: Sequence[Value]) -> Classes:
    """Low, middle and high third of a number."""
    numbers = np.array([math.nan if _missing(v) else float(v) for v in values])  # type: ignore[arg-type]
    known = np.isfinite(numbers)
    cuts = np.quantile(numbers[known], [1 / 3, 2 / 3])
    codes = np.where(known, np.searchsorted(cuts, numbers, side="left"), -1).astype(np.int64)
    return Classes(codes, ("low", "middle", "high"), (f"tertiles cut at {cuts[0]:.4g} and {cuts[1]:.4g}",))


def first_top_word(texts: Sequence[Value], top: int = 50) -> Classes:
    """The lexical label: a sample's class is its first word among the `top` most frequent words.

    Words are runs of letters, lower-cased; samples without a top word are left out.
    """
    labels, names = lexical([None if _missing(text) else str(text) for text in texts], top)
    index = {name: code for code, name in enumerate(names)}
    codes = np.array([-1 if label is None else index[label] for label in labels], dtype=np.int64)
    return Classes(codes, names, (f"first of the {len(names)} most frequent words",))


def classes_of(kind: str, values: Sequence[Value]) -> Classes:
    """Classes of a label column: categories, tertiles of a many-valued number, or top words of text."""
    if kind == "text":
        return first_top_word(values)
    if kind == "number" and len({v for v in values if not _missing(v)}) > _FEW_NUMBERS:
        return tertiles(values)
    return categories(values)


def usable(
    classes: Classes, test_fraction: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Samples and consecutive codes that a stratified split can work with.

    Classes of one sample are left out, for a stratified split needs two.

    Returns:
        (sample indices [n], codes [n] in 0..K-1, notes on who was left out).

    Raises:
        LabelProblem: fewer than two classes, or too few samples for K classes in the test part.
    """
    notes = list(classes.notes)
    missing = int((classes.codes < 0).sum())
    if missing:
        notes.append(f"samples without a value, left out: {missing}")
    present = classes.codes[classes.codes >= 0]
    counts = np.bincount(present, minlength=len(classes.names))
    single = np.flatnonzero(counts == 1)
    if len(single):
        notes.append(f"classes of a single sample, left out: {len(single)}")
    keep = np.flatnonzero((classes.codes >= 0) & ~np.isin(classes.codes, single))
    names, codes = np.unique(classes.codes[keep], return_inverse=True)
    if len(names) < 2:
        what = "no class" if len(names) == 0 else f"only the class {classes.names[names[0]]!r}"
        raise LabelProblem(f"{what} with two or more samples; a probe needs two classes")
    n_test = math.ceil(test_fraction * len(keep))
    if min(n_test, len(keep) - n_test) < len(names):
        raise LabelProblem(
            f"{len(keep)} samples for {len(names)} classes leave {n_test} to test on; a stratified split "
            f"needs one a class, that is at least {math.ceil(len(names) / test_fraction)} samples"
        )
    return keep, codes.astype(np.int64), tuple(notes)


def check_groups(codes: NDArray[np.int64], groups: NDArray[np.int64], test_fraction: float) -> None:
    """Refuse labels whose classes have too few groups to be on both sides of a split.

    Raises:
        LabelProblem: a class with fewer groups than the split has folds.
    """
    folds = max(2, round(1 / test_fraction))
    held = [len(np.unique(groups[codes == code])) for code in range(int(codes.max()) + 1)]
    if min(held) < folds:
        raise LabelProblem(
            f"a class has samples of {min(held)} groups only; a split by groups needs at least {folds} groups a class"
        )


def _missing(value: Value) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, float) and math.isnan(value)
