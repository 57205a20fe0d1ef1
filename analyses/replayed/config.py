"""Options of every experiment that replays a store through the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """What is replayed and what is scored.

    Attributes:
        point: hook point of the stored rows; `adapter_output` where the store has it, else `text_embedding`.
        target: `answer` scores the tokens of each sample's text; `paper` scores the prompt's own tokens, as the
            published scripts do.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the prompts that the store was captured with.
        n_samples: how many complete samples of the store, from the first; None takes all.
        batch_size: sequences a forward; halved where memory runs out.
        seed: of random choices and of the bootstrap.
        draws: bootstrap draws.
        level: coverage of the intervals.

    Raises:
        ValueError: an option out of its range.
    """

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
        if self.target not in ("answer", "paper"):
            raise ValueError(f"target: got {self.target!r}, expected 'answer' or 'paper'")
        for name in ("batch_size", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.n_samples is not None and self.n_samples < 1:
            raise ValueError(f"n_samples: got {self.n_samples}, expected at least 1, or none for all")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")
