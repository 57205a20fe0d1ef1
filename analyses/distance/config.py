"""Options of the distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MEASURES = ("w1", "sliced", "gaussian", "mmd", "cka")


@dataclass(frozen=True, slots=True)
class DistanceConfig:
    """Which distances between the modal and the text law, and how.

    Attributes:
        points: hook points of the modal store; None takes every one that has a counterpart in the text store.
        text_point: hook point of the text store for all of them; None follows the law, as in `align`.
        rows: `tokens` or `pooled`; None takes token rows where both stores have them (the paper's law: pooled).
        measures: of w1, sliced, gaussian, mmd, cka.
        pca: dimensions of the joint PCA before the exact W1.
        samples: rows a side of the exact W1 and of the exact MMD^2.
        bootstrap: resamples of the W1 interval; 0 for none.
        level: coverage of the intervals.
        projections: directions of the sliced distance.
        features: random frequencies of the streamed MMD^2.
        label: label column for W1 between the same class of both stores.
        max_classes: the most frequent classes are compared, at most so many.
        law: `paper` fits the PCA to the sampled rows alone and again in every resample, as the published scripts
            do; the default takes it from all rows of both laws with equal weight.
        seed: of every random choice.
        n_jobs: threads of the bootstrap.
        memory: bytes that the projections of one pass may take; more directions mean more passes.

    Raises:
        ValueError: an option out of its range.
    """

    points: Sequence[str] | None = None
    text_point: str | None = None
    rows: Literal["tokens", "pooled"] | None = None
    measures: Sequence[str] = MEASURES
    pca: int = 256
    samples: int = 1000
    bootstrap: int = 200
    level: float = 0.95
    projections: int = 128
    features: int = 1024
    label: str | None = None
    max_classes: int = 20
    law: Literal["default", "paper"] = "default"
    seed: int = 42
    n_jobs: int = 2
    memory: int = 1_000_000_000

    def __post_init__(self) -> None:
        """Check the options."""
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown or not self.measures:
            raise ValueError(f"measures: got {list(self.measures)}, expected some of {', '.join(MEASURES)}")
        if self.law not in ("default", "paper"):
            raise ValueError(f"law: got {self.law!r}, expected 'default' or 'paper'")
        if self.law == "paper" and self.rows == "tokens":
            raise ValueError("law='paper' fixes rows='pooled', got 'tokens'; drop one of the two")
        if self.rows not in (None, "tokens", "pooled"):
            raise ValueError(f"rows: got {self.rows!r}, expected 'tokens' or 'pooled'")
        at_least = {"pca": 1, "samples": 3, "bootstrap": 0, "projections": 2, "features": 1, "n_jobs": 1,
                    "max_classes": 1, "memory": 1_000_000}  # fmt: skip
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")
