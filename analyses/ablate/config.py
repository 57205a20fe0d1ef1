"""Options of the causal ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AblateConfig:
    """What is projected out and how the loss is compared.

    Attributes:
        subsets: `ms` (all modality-specific modes), `ta` (as many text-aligned modes, those of the largest
            variance), `random*N` (N draws of as many modes as `ms` out of the considered ones), `top*K` (the
            K considered modes of the largest variance), explicit mode numbers `0,3,7`, or `none`.
        point: hook point that is edited; None takes the point of the modes.
        n_samples: how many samples of the data, from the first; None takes all.
        batch_size: samples a forward.
        seed: draw i of `random*N` uses seed + i; also the bootstrap's.
        draws: bootstrap draws.
        level: coverage of the bootstrap intervals.

    Raises:
        ValueError: an option out of its range.
    """

    subsets: Sequence[str] = ("ms", "ta", "random*20")
    point: str | None = None
    n_samples: int | None = None
    batch_size: int = 8
    seed: int = 42
    draws: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the options."""
        if isinstance(self.subsets, str):
            raise ValueError(f"subsets: got the text {self.subsets!r}, expected a list of subsets")
        for name in ("batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.n_samples is not None and self.n_samples < 2:
            raise ValueError(f"n_samples: got {self.n_samples}, expected at least 2 for a paired comparison")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")
