"""Options of the bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BoundConfig:
    """Which constants enter the bounds.

    Attributes:
        point: hook point of the modal store's rows.
        text_point: hook point of the text store's rows.
        constant: statistic of the per-sample gradient norms that stands for L.
        rows: samples a side for the transport distances; more cost rows^3.
        labels: label columns for the probe bound (Theorem 3); they must be in both stores.
        C: inverse l2 strength of its probe.
        test_fraction: share of the samples that its probe does not see.
        seed: of the choice of rows and of the split.

    Raises:
        ValueError: an option out of its range.
    """

    point: str = "adapter_output"
    text_point: str = "text_embedding"
    constant: Literal["mean", "p95", "max"] = "p95"
    rows: int = 1000
    labels: Sequence[str] = ()
    C: float = 1.0
    test_fraction: float = 0.5
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the options."""
        if self.constant not in ("mean", "p95", "max"):
            raise ValueError(f"constant: got {self.constant!r}, expected 'mean', 'p95' or 'max'")
        if self.rows < 4:
            raise ValueError(f"rows: got {self.rows}, expected at least 4")
        if isinstance(self.labels, str):
            raise ValueError(f"labels: got the text {self.labels!r}, expected a list of label columns")
        if not self.C > 0:
            raise ValueError(f"C: got {self.C}, expected more than 0")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction: got {self.test_fraction}, expected a number between 0 and 1")
