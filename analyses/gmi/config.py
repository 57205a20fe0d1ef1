"""Options of the GMI estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from modegap.analyses.replayed.config import ReplayConfig


@dataclass(frozen=True, slots=True)
class GmiConfig(ReplayConfig):
    """What the decoder is asked and how it is scored.

    Attributes:
        point: hook point of the modal store's rows; the text store's are at `text_embedding`.
        target: must be `answer`: the prompt's own tokens do not depend on the rows behind them.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the prompts that the store was captured with.
        n_samples: how many complete samples of a store, from the first; None takes all.
        batch_size: sequences a forward; halved where memory runs out.
        seed: of the blocks of alternatives, the probe's folds and the bootstrap.
        draws: bootstrap draws.
        level: coverage of the intervals.
        labels: label columns whose values the decoder is asked for (attribute GMI and Delta_access).
        question: the prompt for labels; `{label}` stands for the column's name. Unless given, the prompts of the
            store.
        verbalise: how a label's value is said; `{value}` stands for it.
        alternatives: rows z' of other samples of the same law that each target is scored under.
        given_target: draw z' only from samples with the same target, the formula as printed, which is never
            positive; by default z' does not depend on the target, as in the mutual information of a channel.
        score: log q of a target: `mean` over its tokens, as in L_log and the bounds, or `total`; clipped at the
            score of a uniform decoder either way.
        label_score: the same for verbalised labels, whose scale is free and which are not clipped.
        folds: of the cross-fitted probe.
        C: its inverse l2 strength.
        group: label column whose samples stay on one side of the probe's folds.

    Raises:
        ValueError: an option out of its range.
    """

    labels: Sequence[str] = ()
    question: str | None = None
    verbalise: str = "{value}"
    alternatives: int = 63
    given_target: bool = False
    score: Literal["mean", "total"] = "mean"
    label_score: Literal["mean", "total"] = "total"
    folds: int = 5
    C: float = 1.0
    group: str | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        ReplayConfig.__post_init__(self)
        if self.target != "answer":
            raise ValueError("target: GMI needs target='answer'")
        if isinstance(self.labels, str):
            raise ValueError(f"labels: got the text {self.labels!r}, expected a list of label columns")
        if self.alternatives < 1:
            raise ValueError(f"alternatives: got {self.alternatives}, expected at least 1")
        for name in ("score", "label_score"):
            if getattr(self, name) not in ("mean", "total"):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected 'mean' or 'total'")
        if "{value}" not in self.verbalise:
            raise ValueError(f"verbalise: got {self.verbalise!r}, expected a text with {{value}} in it")
        if self.folds < 2:
            raise ValueError(f"folds: got {self.folds}, expected at least 2")
        if not self.C > 0:
            raise ValueError(f"C: got {self.C}, expected more than 0")
