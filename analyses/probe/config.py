"""Options of the probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Which probes and how they are fitted.

    Attributes:
        points: hook points; None takes every point with pooled rows.
        labels: label columns, `lexical` for the top words of the text column; None takes every column.
        C: inverse l2 strength of the logistic regression.
        seeds: one stratified split and fit a seed.
        test_fraction: share of the samples to test on.
        max_iter: iterations of L-BFGS; None is 1000 (the paper's law: 100).
        law: `paper` fits as the published scripts do: C = 1 / (1e-4 n_train), splits from one generator.
        n_jobs: splits fitted at a time, on threads; None is 1 for scikit-learn, and for the batched solver one a core
            as far as the memory goes.
        retention: (from, to) hook points of the retention.
        group: label column whose samples stay on one side of every split (a speaker, a scanned page), so that a
            probe cannot recognise the test samples' group instead of their class.
        solver: `sklearn`, the reference; `batched`, the same problem by products with the rows' Gram matrix, in
            torch; `auto` takes the faster one by the size of the work, and scikit-learn for the paper's law.
        tol: a fit is done when max |gradient of the mean loss| is at most this, as in scikit-learn.
        device: where the batched solver computes, `cuda` for one; None is the host.
        calibration: folds inside the training part that the cross-entropy is calibrated on; 0 for none.
        control: also fit random classes, for the selectivity: `samples` shuffles the classes over the samples, a
            label column draws one class for each of its values.
        level: coverage of the intervals.
        pool: which rows a sample's row is the mean of: `stored` takes the store's own mean rows, `all` its tokens,
            `modality` those that stand for its media; the last two are made of the token rows where the store's mean
            rows are others.

    Raises:
        ValueError: an option out of its range.
    """

    points: Sequence[str] | None = None
    labels: Sequence[str] | None = None
    C: float = 1.0
    seeds: Sequence[int] = (42, 43, 44, 45, 46)
    test_fraction: float = 0.2
    max_iter: int | None = None
    law: Literal["default", "paper"] = "default"
    n_jobs: int | None = None
    retention: tuple[str, str] = ("adapter_output", "llm_final")
    group: str | None = None
    solver: Literal["auto", "sklearn", "batched"] = "auto"
    tol: float = 1e-4
    device: str | None = None
    calibration: int = 3
    control: str | None = None
    level: float = 0.95
    pool: Literal["stored", "all", "modality"] = "stored"

    def __post_init__(self) -> None:
        """Check the options."""
        if self.law not in ("default", "paper"):
            raise ValueError(f"law: got {self.law!r}, expected 'default' or 'paper'")
        if not self.C > 0:
            raise ValueError(f"C: got {self.C}, expected more than 0")
        if self.law == "paper" and self.C != 1.0:
            raise ValueError(f"law='paper' fixes C = 1 / (1e-4 n_train), got C={self.C}; drop one of the two")
        if self.law == "paper" and self.group is not None:
            raise ValueError(
                f"law='paper' splits without groups, got group={self.group!r}; drop one of the two"
            )
        if not self.seeds:
            raise ValueError("seeds: got none, expected at least one")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction: got {self.test_fraction}, expected a number between 0 and 1")
        if self.n_jobs is not None and self.n_jobs < 1:
            raise ValueError(f"n_jobs: got {self.n_jobs}, expected at least 1")
        if self.max_iter is not None and self.max_iter < 1:
            raise ValueError(f"max_iter: got {self.max_iter}, expected at least 1")
        if self.solver not in ("auto", "sklearn", "batched"):
            raise ValueError(f"solver: got {self.solver!r}, expected 'auto', 'sklearn' or 'batched'")
        if not self.tol > 0:
            raise ValueError(f"tol: got {self.tol}, expected more than 0")
        if self.calibration < 0 or self.calibration == 1:
            raise ValueError(f"calibration: got {self.calibration}, expected 0 or at least 2 folds")
        if self.pool not in ("stored", "all", "modality"):
            raise ValueError(f"pool: got {self.pool!r}, expected 'stored', 'all' or 'modality'")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")
        if self.solver == "sklearn" and self.on_device:
            raise ValueError(
                f"solver='sklearn' computes on the host, got device={self.device!r}; drop one of the two"
            )

    @property
    def iterations(self) -> int:
        """The iterations L-BFGS may take."""
        return self.max_iter or (100 if self.law == "paper" else 1000)

    @property
    def on_device(self) -> bool:
        """Whether the fits are computed away from the host."""
        return self.device is not None and not self.device.startswith("cpu")

    def strength(self, n_train: int) -> float:
        """The C of a fit to `n_train` samples."""
        return 1 / (1e-4 * n_train) if self.law == "paper" else self.C
