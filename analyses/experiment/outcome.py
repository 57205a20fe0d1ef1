"""What a run of an experiment did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modegap.analyses.result import NotebookRepr, jsonable
from modegap.analyses.table import Column, Table


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """One cell.

    Attributes:
        cell: `<data set>/<model>/<what>`.
        outcome: `done`, `skipped` (done before), `failed`, `blocked` (reads one that failed); `to do` in a dry run.
        seconds: what it took.
        message: why it failed or is blocked, or a remark.
        file: what it wrote, relative to the experiment's folder.
    """

    cell: str
    outcome: str
    seconds: float
    message: str
    file: str


@dataclass(frozen=True, slots=True)
class ExperimentResult(NotebookRepr):
    """All cells of a run, and where the report is.

    Attributes:
        name: of the experiment.
        cells: in the order in which they ran.
        report: the page; None where none was written.
    """

    name: str
    cells: tuple[CellOutcome, ...]
    report: Path | None

    @property
    def failed(self) -> tuple[CellOutcome, ...]:
        """Cells without a result."""
        return tuple(cell for cell in self.cells if cell.outcome in ("failed", "blocked"))

    @property
    def exit_code(self) -> int:
        """1 where a cell has no result, else 0."""
        return int(bool(self.failed))

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"name": self.name, "cells": jsonable(self.cells), "report": self.report and str(self.report)}

    def table(self) -> Table:
        """One row a cell."""
        columns = ("cell", "outcome", Column("seconds", format=".1f"), "file", "why")
        rows = [(c.cell, c.outcome, c.seconds or None, c.file, c.message) for c in self.cells]
        notes = (f"report: {self.report}",) if self.report else ()
        return Table(f"Experiment {self.name}", columns, rows, notes)
