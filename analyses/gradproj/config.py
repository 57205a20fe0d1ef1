"""Options of the gradient projections."""

from __future__ import annotations

from dataclasses import dataclass

from modegap.analyses.replayed.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class GradprojConfig(ReplayConfig):
    """Which gradients are projected on the modes.

    Attributes:
        point: hook point of the stored rows; `adapter_output` where the store has it, else `text_embedding`.
        target: `answer` scores the tokens of each sample's text; `paper` scores the prompt's own tokens, as the
            published scripts do.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the prompts that the store was captured with.
        n_samples: how many complete samples of the store, from the first; None takes all.
        batch_size: sequences a forward; halved where memory runs out.
        seed: of the bootstrap.
        draws: bootstrap draws.
        level: coverage of the intervals.

    Raises:
        ValueError: an option out of its range.
    """
