"""Differences of two probes, with the interval that their splits allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modegap.analyses.probe import Cell
from modegap.analyses.probe.intervals import corrected_interval


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first.

    Attributes:
        value: difference of the accuracies.
        low: lower end of the interval; None where there is none.
        high: upper end.
        paired: whether both were tested on the same splits, seed by seed.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def clear(self) -> bool | None:
        """Whether the interval excludes 0; None without one."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0


def accuracy_difference(first: Cell, second: Cell, level: float) -> Difference | None:
    """Accuracy of `second` less that of `first`; None where one of them was not fitted.

    On the same splits (same seeds, samples and classes) the interval is `corrected_interval` of the differences
    seed by seed; else the ends of both intervals add up in quadrature, as for independent estimates.
    """
    if first.accuracy is None or second.accuracy is None:
        return None
    value = second.accuracy - first.accuracy
    if _same_splits(first, second):
        pairs = zip(first.scores, second.scores, strict=True)
        ends = corrected_interval([b.accuracy - a.accuracy for a, b in pairs], first.test_share, level)
        low, high = ends or (None, None)
        return Difference(value, low, high, paired=True)
    one, other = first.interval(level), second.interval(level)
    if one is None or other is None:
        return Difference(value, None, None, paired=False)
    down = math.hypot(one[1] - first.accuracy, second.accuracy - other[0])
    up = math.hypot(first.accuracy - one[0], other[1] - second.accuracy)
    return Difference(value, value - down, value + up, paired=False)


def _same_splits(first: Cell, second: Cell) -> bool:
    def facts(cell: Cell) -> tuple[object, ...]:
        splits = [(score.seed, score.n_train, score.n_test) for score in cell.scores]
        return cell.label, cell.n, cell.classes, cell.majority, splits

    return len(first.scores) > 1 and facts(first) == facts(second)
