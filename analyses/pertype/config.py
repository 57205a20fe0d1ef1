"""Options of the per-type analysis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PertypeConfig:
    """Which labels, and how their classes are compared.

    Attributes:
        labels: label columns, `lexical` for the top words of the text; None takes every column with classes.
        rows: `tokens` or `pooled`; None takes pooled rows where the store has them, since labels are of samples.
        precision: arithmetic of the moments, `precise` or `exact` (fp64).
        dimension: most dimensions of the class-to-class W1; the MS and the TA span are cut to the same number.
        samples: rows of a class, at most, in a W1.
        pairs: pairs of classes; drawn where there are more.
        degradation: (from, to) hook points of the probe degradation.
        seed: of the draws.

    Raises:
        ValueError: an option out of its range.
    """

    labels: Sequence[str] | None = None
    rows: Literal["tokens", "pooled"] | None = None
    precision: Literal["precise", "exact"] = "precise"
    dimension: int = 256
    samples: int = 500
    pairs: int = 20
    degradation: tuple[str, str] = ("encoder_output", "llm_final")
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the options."""
        if self.rows not in (None, "tokens", "pooled"):
            raise ValueError(f"rows: got {self.rows!r}, expected 'tokens' or 'pooled'")
        if self.precision not in ("precise", "exact"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'precise' or 'exact'")
        for name, least in (("dimension", 1), ("samples", 5), ("pairs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if len(self.degradation) != 2:
            raise ValueError(f"degradation: got {self.degradation}, expected two hook points, (from, to)")
