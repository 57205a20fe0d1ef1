"""The result of a grid of probes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import ProbeConfig
from .fit import Scores
from .intervals import Interval, corrected_interval, ratio_interval, wilson_interval

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Cell:
    """One hook point and label; `message` says why `scores` is empty, where it is.

    Attributes:
        point: hook point.
        label: label column.
        n: samples used.
        classes: number of classes, K.
        majority: share of the largest class.
        scores: one entry a seed.
        message: why the cell could not be fitted, or empty.
        notes: who was left out and what did not converge.
        entropy: H(S) of the classes, plug-in, nats.
        solver: what fitted it.
    """

    point: str
    label: str
    n: int = 0
    classes: int = 0
    majority: float | None = None
    scores: tuple[Scores, ...] = ()
    message: str = ""
    notes: tuple[str, ...] = ()
    entropy: float | None = None
    solver: str = "sklearn"

    @property
    def chance(self) -> float | None:
        """1 / K."""
        return 1 / self.classes if self.classes else None

    @property
    def accuracy(self) -> float | None:
        """Mean test accuracy over the seeds."""
        return statistics.fmean(s.accuracy for s in self.scores) if self.scores else None

    @property
    def accuracy_std(self) -> float | None:
        """Standard deviation of the accuracy over the seeds, ddof 1; None for a single seed."""
        return statistics.stdev(s.accuracy for s in self.scores) if len(self.scores) > 1 else None

    @property
    def macro_f1(self) -> float | None:
        """Mean macro F1 over the seeds."""
        return statistics.fmean(s.macro_f1 for s in self.scores) if self.scores else None

    @property
    def cross_entropy(self) -> float | None:
        """Mean held-out cross-entropy after calibration, nats."""
        return self._mean("cross_entropy")

    @property
    def information(self) -> float | None:
        """H(S) - cross-entropy, nats: a lower bound on I(Z;S) in expectation."""
        found = self.cross_entropy
        return None if found is None or self.entropy is None else self.entropy - found

    @property
    def control(self) -> float | None:
        """Mean test accuracy of the fits to random classes."""
        return self._mean("control")

    @property
    def selectivity(self) -> float | None:
        """Accuracy less that of the fits to random classes."""
        if self.accuracy is None or self.control is None:
            return None
        return self.accuracy - self.control

    @property
    def test_share(self) -> float:
        """Mean n_test / n_train, which the intervals over seeds are corrected by."""
        return statistics.fmean(s.n_test / s.n_train for s in self.scores)

    def interval(self, level: float = 0.95) -> Interval | None:
        """Interval of the accuracy: `corrected_interval` over seeds; for one seed Wilson's over its test samples."""
        if not self.scores:
            return None
        if len(self.scores) == 1:
            return wilson_interval(self.scores[0].accuracy, self.scores[0].n_test, level)
        low, high = _given(corrected_interval([s.accuracy for s in self.scores], self.test_share, level))
        return max(low, 0.0), min(high, 1.0)

    def information_interval(self, level: float = 0.95) -> Interval | None:
        """`corrected_interval` over seeds of H(S) - cross-entropy, nats; None for one seed."""
        values = [s.cross_entropy for s in self.scores if s.cross_entropy is not None]
        if self.entropy is None or len(values) < 2:
            return None
        entropy = self.entropy
        return corrected_interval([entropy - value for value in values], self.test_share, level)

    def _mean(self, name: str) -> float | None:
        values = [value for s in self.scores if (value := getattr(s, name)) is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a label's accuracy at `source` is left at `target`, in percent of the source.

    Attributes:
        label: label column.
        source: hook point of the denominator.
        target: hook point of the numerator.
        ratio: accuracy at the target over accuracy at the source.
        above_chance: the same with 1 / K taken off both; None where the source is not above chance by more
            than its standard deviation over seeds, for then it is noise over noise.
        low: lower end of the interval on `ratio`, over seeds paired at both points; None for one seed.
        high: its upper end.
        above_low: lower end of the interval on `above_chance`.
        above_high: its upper end.
    """

    label: str
    source: str
    target: str
    ratio: float
    above_chance: float | None
    low: float | None = None
    high: float | None = None
    above_low: float | None = None
    above_high: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeResult(NotebookRepr):
    """Accuracy of every label at every hook point.

    Attributes:
        config: the options used.
        points: hook points in the order of the pipeline.
        labels: labels.
        cells: one entry a point and label, label by label.
        certificate: of the rows that were read, with the solvers and why they were taken.
        pool: which rows of a sample the pooled row is the mean of, `all` or `modality`.
    """

    config: ProbeConfig
    points: tuple[str, ...]
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    certificate: Certificate
    pool: str = "all"

    def __iter__(self) -> Iterator[Cell]:
        """The cells, label by label."""
        return iter(self.cells)

    def cell(self, point: str, label: str) -> Cell:
        """The cell of a point and a label.

        Raises:
            KeyError: a pair that was not probed.
        """
        for cell in self.cells:
            if (cell.point, cell.label) == (point, label):
                return cell
        raise KeyError(f"no cell for point {point!r} and label {label!r}")

    def retention(self) -> tuple[Retention, ...]:
        """Retention of every label that was fitted at both points of `config.retention`.

        The plain ratio is that of the paper's Tables 6-7, the chance-corrected one that of its scripts.
        """
        return tuple(found for label in self.labels if (found := self._retention(label)) is not None)

    def _retention(self, label: str) -> Retention | None:
        source, target = self.config.retention
        found = {c.point: c for c in self.cells if c.label == label and c.scores}
        if source not in found or target not in found or not found[source].accuracy:
            return None
        before, after = ([s.accuracy for s in found[point].scores] for point in (source, target))
        share, level, chance = found[source].test_share, self.config.level, found[source].chance or 0.0
        mean, kept = statistics.fmean(before), statistics.fmean(after)
        low, high = _percent(ratio_interval(after, before, share, level))
        clear = mean - chance > max(found[source].accuracy_std or 0.0, 1e-9)
        above, above_low, above_high = None, None, None
        if clear:
            above = 100 * (kept - chance) / (mean - chance)
            pairs = [a - chance for a in after], [b - chance for b in before]
            above_low, above_high = _percent(ratio_interval(*pairs, share, level))
        return Retention(label, source, target, 100 * kept / mean, above, low, high, above_low, above_high)

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every seed's scores."""
        cells = [
            {
                **asdict(cell),
                "chance": cell.chance,
                "accuracy": cell.accuracy,
                "accuracy_std": cell.accuracy_std,
                "macro_f1": cell.macro_f1,
                "accuracy_interval": cell.interval(self.config.level),
                "cross_entropy": cell.cross_entropy,
                "information": cell.information,
                "information_interval": cell.information_interval(self.config.level),
                "control": cell.control,
                "selectivity": cell.selectivity,
            }
            for cell in self.cells
        ]
        return {
            "analysis": "probe",
            "config": jsonable(self.config),
            "points": jsonable(self.points),
            "labels": jsonable(self.labels),
            "cells": jsonable(cells),
            "retention": jsonable(self.retention()),
            "pool": self.pool,
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """One row a label and hook point: accuracy, F1, chance, and retention in the target's row.

        Cross-entropy and information come with the calibration, selectivity with the control task.
        """
        kept = {(r.label, r.target): r for r in self.retention()}
        calibrated = any(cell.cross_entropy is not None for cell in self.cells)
        control = any(cell.control is not None for cell in self.cells)
        rows = []
        for cell in self.cells:
            retention = kept.get((cell.label, cell.point))
            low, high = cell.interval(self.config.level) or (None, None)
            rows.append(
                (
                    cell.label,
                    cell.point,
                    cell.accuracy,
                    cell.accuracy_std,
                    low,
                    high,
                    cell.macro_f1,
                    cell.chance,
                    cell.majority,
                    *((cell.cross_entropy, cell.information) if calibrated else ()),
                    *((cell.control, cell.selectivity) if control else ()),
                    cell.n or None,
                    cell.classes or None,
                    retention.ratio if retention else None,
                    retention.above_chance if retention else None,
                )
            )
        nats = (Column("cross-entropy", "nats", ".3f"), Column("information", "nats", ".3f"))
        random = (Column("control accuracy", format=".3f"), Column("selectivity", format=".3f"))
        columns = (
            "label",
            "hook point",
            Column("accuracy", format=".3f"),
            Column("std", format=".3f"),
            Column("low", format=".3f"),
            Column("high", format=".3f"),
            Column("macro F1", format=".3f"),
            Column("chance", format=".3f"),
            Column("majority", format=".3f"),
            *(nats if calibrated else ()),
            *(random if control else ()),
            "samples",
            "classes",
            Column("retention", "%", ".1f"),
            Column("retention above chance", "%", ".1f"),
        )
        return Table("Linear probes along the hook points", columns, rows, self._notes())

    def retention_table(self) -> Table:
        """One row a label: both retentions with their intervals."""
        rows = [
            (r.label, r.ratio, r.low, r.high, r.above_chance, r.above_low, r.above_high)
            for r in self.retention()
        ]
        ends = (Column("low", "%", ".1f"), Column("high", "%", ".1f"))
        columns = (
            "label",
            Column("retention", "%", ".1f"),
            *ends,
            Column("above chance", "%", ".1f"),
            Column("low above chance", "%", ".1f"),
            Column("high above chance", "%", ".1f"),
        )
        source, target = self.config.retention
        return Table(f"Retention from {source} to {target}", columns, rows, (self._intervals(),))

    def figure(self) -> Any:
        """Accuracy along the hook points, one line a label, bars of the intervals."""
        from .figure import accuracy_chart

        return accuracy_chart(self)

    def _notes(self) -> tuple[str, ...]:
        c = self.config
        strength = "C = 1 / (1e-4 n_train), the paper's scripts" if c.law == "paper" else f"C = {c.C:g}"
        notes = [
            f"l2 logistic regression, {strength}, z-scored with training statistics, "
            f"{100 * c.test_fraction:g} % of the samples to test on, stratified, mean and standard deviation "
            f"over seeds {', '.join(map(str, c.seeds))}"
            f"{f', no {c.group} on both sides of a split' if c.group else ''}; "
            f"retention is {c.retention[1]} over {c.retention[0]}; "
            f"stopped at a gradient of {c.tol:g} or {c.iterations} iterations",
            self._intervals(),
        ]
        if self.pool != "all":
            notes.append("pooled rows are means over the media tokens")
        if any(cell.cross_entropy is not None for cell in self.cells):
            notes.append(
                f"cross-entropy: test samples, weight of the log-likelihood ratio fitted on {c.calibration} folds of "
                "the training part; information = H(S) - cross-entropy, a lower bound on I(Z;S)"
            )
        if c.control is not None:
            drawn = "shuffled over the samples" if c.control == "samples" else f"drawn for each {c.control}"
            notes.append(
                f"control: the same fit to classes {drawn}; selectivity = accuracy - control accuracy"
            )
        for label in self.labels:
            # What holds at every hook point is said once.
            said = [note for c in self.cells if c.label == label for note in (c.message, *c.notes) if note]
            notes += [f"{label}: {note}" for note in dict.fromkeys(said)]
        return tuple(notes)

    def _intervals(self) -> str:
        percent = 100 * self.config.level
        if len(self.config.seeds) == 1:
            return f"low and high: {percent:g} % Wilson interval over the test samples of the one seed"
        return (
            f"low and high: {percent:g} % Student t interval over {len(self.config.seeds)} seeds, its variance "
            "corrected for overlapping splits (Nadeau and Bengio 2003)"
        )


def _given(found: Interval | None) -> Interval:
    assert found is not None
    return found


def _percent(found: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if found is None else (100 * found[0], 100 * found[1])
