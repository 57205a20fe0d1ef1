"""Options of the LoRA intervention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Literal

from modegap.engine.lora.config import TrainConfig


@dataclass(frozen=True, slots=True)
class LoraConfig(TrainConfig):
    """What is trained, asked and measured; the training follows the paper's recipe unless changed.

    Attributes:
        epochs: at most so many passes over the training samples.
        lr: of AdamW, constant.
        weight_decay: of AdamW.
        effective_batch: samples an optimiser step.
        batch_size: samples a forward, in training and measuring; halved where memory runs out.
        clip: largest norm of the gradient.
        patience: epochs without a better validation loss after which training stops.
        checkpointing: compute the decoder's layers again in the backward pass instead of keeping what they made.
        precision: `bfloat16` computes under autocast, `float32` in the weights' dtype; `auto` is bfloat16 on a GPU.
        seed: of the split, initial weights, order, dropout and bootstrap.
        save_every: optimiser steps between two checkpoints; one is written at the end of every epoch too.
        rank: of the adapters.
        alpha: numerator of their scale, alpha / rank.
        dropout: share of an adapter's input dropped in training.
        modules: the decoder's linear layers that get one.
        question: the prompt; `{label}` stands for the column's name, `{choices}` for its values.
        questions: the prompts of labels that need their own.
        verbalise: how a value is said; `{value}` stands for it.
        labels: label columns the decoder is asked for before and after; every categorical one unless given.
        target_label: label column of the texts that the control is trained on and that L_log and GMI score; `text`,
            `transcript`, `caption` or `answer` unless given.
        control: also train an adapter on the texts of the same samples by the same recipe.
        n_samples: only the first so many complete samples of the store.
        test_fraction: share of the samples that no training sees; every number is of these.
        validation_fraction: share of all samples that early stopping looks at.
        group: label column whose samples stay on one side of every split (a speaker, a scanned page).
        min_per_class: least samples of a class.
        points: hook points that are captured again and probed; the middle of the decoder and its end unless given.
        score: log q of a choice, `total` over its tokens or their `mean`.
        generate: also let the decoder write its answer and look for a choice in it.
        max_new_tokens: longest written answer.
        alternatives: of the GMI of the texts.
        draws: bootstrap draws.
        level: coverage of the intervals.

    Raises:
        ValueError: an option out of its range.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    modules: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    question: str = "What is the {label}? Answer with one of: {choices}."
    questions: dict[str, str] = field(default_factory=dict)
    verbalise: str = "{value}"
    labels: Sequence[str] | None = None
    target_label: str | None = None
    control: bool = True
    n_samples: int | None = None
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    group: str | None = None
    min_per_class: int = 10
    points: Sequence[str] | None = None
    score: Literal["total", "mean"] = "total"
    generate: bool = True
    max_new_tokens: int = 16
    alternatives: int = 63
    draws: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the options."""
        TrainConfig.__post_init__(self)
        for name in ("rank", "alpha", "max_new_tokens", "alternatives", "draws", "min_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected a number from 0 to below 1")
        for name in ("modules", "labels", "points"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: got the text {getattr(self, name)!r}, expected a list of names")
        if not self.modules:
            raise ValueError("modules: got none, expected at least one")
        if self.n_samples is not None and self.n_samples < 1:
            raise ValueError(f"n_samples: got {self.n_samples}, expected at least 1, or none for all")
        parts = (self.test_fraction, self.validation_fraction)
        if min(parts) <= 0 or sum(parts) >= 1:
            raise ValueError(
                f"test_fraction, validation_fraction: got {parts[0]} and {parts[1]}, expected two shares above 0 "
                "whose sum is below 1"
            )
        if "{value}" not in self.verbalise:
            raise ValueError(f"verbalise: got {self.verbalise!r}, expected a text with {{value}} in it")
        if self.score not in ("total", "mean"):
            raise ValueError(f"score: got {self.score!r}, expected 'total' or 'mean'")
        if not 0 < self.level < 1:
            raise ValueError(f"level: got {self.level}, expected a number between 0 and 1")

    def training(self) -> TrainConfig:
        """The options of the training alone."""
        return TrainConfig(**{one.name: getattr(self, one.name) for one in fields(TrainConfig)})

    def ask(self, label: str, choices: Sequence[str]) -> str:
        """The prompt for a label with these values."""
        template = self.questions.get(label, self.question)
        # not str.format: an answer in JSON, as the paper asks for, has braces of its own
        return template.replace("{label}", label).replace("{choices}", ", ".join(choices))

    def say(self, value: str) -> str:
        """A value as an answer."""
        return self.verbalise.replace("{value}", value)


@dataclass(frozen=True, slots=True)
class InterventionConfig(LoraConfig):
    """The options with the label that they are for, as an experiment's file gives them.

    Attributes:
        label: label column to train for; it names the folder of the adapters too.

    Raises:
        ValueError: an option out of its range, or a label that can name no folder.
    """

    _: KW_ONLY
    label: str

    def __post_init__(self) -> None:
        """Check the options."""
        LoraConfig.__post_init__(self)
        if not self.label or self.label != Path(self.label).name or self.label.startswith("."):
            raise ValueError(f"label: got {self.label!r}, expected the name of a label column, without /")

    def options(self) -> LoraConfig:
        """The options alone."""
        return LoraConfig(**{one.name: getattr(self, one.name) for one in fields(LoraConfig)})
