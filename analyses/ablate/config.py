"""Options of the causal ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modegap.analyses.replayed.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class AblateConfig:
    """What is projected out and how the loss is compared.

    Attributes:
        subsets: `ms` (all modality-specific modes), `ta` (as many text-aligned modes, those of the largest
            variance), `random*N` (N draws of as many modes as `ms` out of the considered ones), `top*K` (the
            K considered modes of the largest variance), explicit mode numbers `0,3,7`, `each` (a sweep: every
            considered mode alone), `each*K` (the first K modes alone, whatever they are), or `none`.
        point: hook point that is edited; None takes the point of the modes.
        target: of a replay: `answer` scores the tokens of each sample's text; `paper` scores the prompt's own
            tokens, as the published scripts do.
        target_label: of a replay: label column of the target texts.
        prompt: instead of the stored prompts, or the family's own.
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
    target: Literal["answer", "paper"] = "answer"
    target_label: str | None = None
    prompt: str | None = None
    n_samples: int | None = None
    batch_size: int = 8
    seed: int = 42
    draws: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the options."""
        if isinstance(self.subsets, str):
            raise ValueError(f"subsets: got the text {self.subsets!r}, expected a list of subsets")
        if self.n_samples is not None and self.n_samples < 2:
            raise ValueError(f"n_samples: got {self.n_samples}, expected at least 2 for a paired comparison")
        self.replay(None)  # checks what the replay shares

    def replay(self, point: str | None) -> ReplayConfig:
        """The options of the replay; `point` is the edited one, which the stored rows may be at."""
        return ReplayConfig(
            point=point if point in ("adapter_output", "text_embedding") else None,
            target=self.target,
            target_label=self.target_label,
            prompt=self.prompt,
            n_samples=self.n_samples,
            batch_size=self.batch_size,
            seed=self.seed,
            draws=self.draws,
            level=self.level,
        )
