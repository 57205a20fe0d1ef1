"""The result of a grid of probes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import ProbeConfig
from .fit import Scores

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
    """

    point: str
    label: str
    n: int = 0
    classes: int = 0
    majority: float | None = None
    scores: tuple[Scores, ...] = ()
    message: str = ""
    notes: tuple[str, ...] = ()

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
    """

    label: str
    source: str
    target: str
    ratio: float
    above_chance: float | None


@dataclass(frozen=True, slots=True)
class ProbeResult(NotebookRepr):
    """Accuracy of every label at every hook point.

    Attributes:
        config: the options used.
        points: hook points in the order of the pipeline.
        labels: labels.
        cells: one entry a point and label, label by label.
        certificate: of the rows that were read.
    """

    config: ProbeConfig
    points: tuple[str, ...]
    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    certificate: Certificate

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
        source, target = self.config.retention
        out = []
        for label in self.labels:
            pair = [c for p in (source, target) for c in self.cells if (c.point, c.label) == (p, label)]
            if len(pair) == 2 and pair[0].accuracy and pair[1].accuracy is not None and pair[0].chance:
                before, after, chance = pair[0].accuracy, pair[1].accuracy, pair[0].chance
                clear = before - chance > max(pair[0].accuracy_std or 0.0, 1e-9)
                above = 100 * (after - chance) / (before - chance) if clear else None
                out.append(Retention(label, source, target, 100 * after / before, above))
        return tuple(out)

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every seed's scores."""
        cells = [
            {
                **asdict(cell),
                "chance": cell.chance,
                "accuracy": cell.accuracy,
                "accuracy_std": cell.accuracy_std,
                "macro_f1": cell.macro_f1,
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
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """One row a label and hook point: accuracy, F1, chance, and retention in the target's row."""
        kept = {(r.label, r.target): r for r in self.retention()}
        rows = []
        for cell in self.cells:
            retention = kept.get((cell.label, cell.point))
            rows.append(
                (
                    cell.label,
                    cell.point,
                    cell.accuracy,
                    cell.accuracy_std,
                    cell.macro_f1,
                    cell.chance,
                    cell.majority,
                    cell.n,
                    cell.classes,
                    retention.ratio if retention else None,
                    retention.above_chance if retention else None,
                )
            )
        columns = (
            "label",
            "hook point",
            Column("accuracy", format=".3f"),
            Column("std", format=".3f"),
            Column("macro F1", format=".3f"),
            Column("chance", format=".3f"),
            Column("majority", format=".3f"),
            "samples",
            "classes",
            Column("retention", "%", ".1f"),
            Column("retention above chance", "%", ".1f"),
        )
        return Table("Linear probes along the hook points", columns, rows, self._notes())

    def figure(self) -> Any:
        """Accuracy along the hook points, one line a label, error bars of one standard deviation."""
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
            f"retention is {c.retention[1]} over {c.retention[0]}"
        ]
        for label in self.labels:
            # What holds at every hook point is said once.
            said = [note for c in self.cells if c.label == label for note in (c.message, *c.notes) if note]
            notes += [f"{label}: {note}" for note in dict.fromkeys(said)]
        return tuple(notes)
