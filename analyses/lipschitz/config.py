"""Options of the L_log estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modegap.analyses.replayed.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class LipschitzConfig(ReplayConfig):
    """Which gradients, and how their norms are grouped.

    Attributes:
        point: hook point of the stored rows; `adapter_output` where the store has it, else `text_embedding`.
        target: `answer` scores the tokens of each sample's text; `paper` scores the prompt's own tokens, as the
            published scripts do.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the prompts that the store was captured with.
        n_samples: how many complete samples of the store, from the first; None takes all.
        batch_size: sequences a forward; halved where memory runs out.
        seed: of the sampled pairs and of the bootstrap.
        draws: bootstrap draws.
        level: coverage of the intervals.
        by: label columns: the same statistics for each of their classes (information types).
        pairs: pairs of samples whose distance is taken for the diameter; 0 takes every pair. `target=paper`
            samples 200 pairs of 500 rows as published.

    Raises:
        ValueError: an option out of its range.
    """

    by: Sequence[str] = ()
    pairs: int = 10_000

    def __post_init__(self) -> None:
        """Check the options."""
        ReplayConfig.__post_init__(self)
        if isinstance(self.by, str):
            raise ValueError(f"by: got the text {self.by!r}, expected a list of label columns")
        if self.pairs < 0:
            raise ValueError(f"pairs: got {self.pairs}, expected 0 (all) or more")
