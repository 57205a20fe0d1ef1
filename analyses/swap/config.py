"""Options of the subspace swap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modegap.analyses.replayed.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class SwapConfig(ReplayConfig):
    """What is swapped between which classes.

    Attributes:
        point: hook point of the stored rows; `adapter_output` where the store has it, else `text_embedding`.
        target: `answer` scores the tokens of each sample's text; `paper` scores the prompt's own tokens and
            takes the distance of the two classes' means as the perturbation, as the published script does.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the prompts that the store was captured with.
        n_samples: how many complete samples of the store, from the first; None takes all.
        batch_size: sequences a forward; halved where memory runs out.
        seed: donor draw i uses seed + i; also the bootstrap's.
        draws: bootstrap draws.
        level: coverage of the intervals.
        by: label column of the classes, for example the speaker. Numbers with many values become tertiles.
        subspaces: `ms` (all modality-specific modes), `ta` (all considered text-aligned ones, as published),
            or what `ablate` takes: `random*N`, `top*K`, mode numbers `0,3,7`.
        donors: donor classes drawn for every sample.

    Raises:
        ValueError: an option out of its range.
    """

    by: str = "speaker"
    subspaces: Sequence[str] = ("ms", "ta")
    donors: int = 1

    def __post_init__(self) -> None:
        """Check the options."""
        ReplayConfig.__post_init__(self)
        if isinstance(self.subspaces, str) or not self.subspaces:
            raise ValueError(f"subspaces: got {self.subspaces!r}, expected a list of subspaces")
        if self.donors < 1:
            raise ValueError(f"donors: got {self.donors}, expected at least 1")
