"""How an adapter is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The published recipe by default; a step's gradient is the mean over its samples of each one's mean loss.

    Attributes:
        epochs: at most so many passes over the training samples.
        lr: of AdamW, constant.
        weight_decay: of AdamW.
        effective_batch: samples an optimiser step.
        batch_size: samples a forward; more forwards a step where it is smaller; halved where memory runs out.
        clip: largest norm of the gradient.
        patience: epochs without a better validation loss after which training stops.
        checkpointing: compute the decoder's layers again in the backward pass instead of keeping what they made.
        precision: `bfloat16` computes under autocast, `float32` in the weights' dtype; `auto` is bfloat16 on a GPU.
        seed: of initial weights, order and dropout.
        save_every: optimiser steps between two checkpoints; one is written at the end of every epoch too.

    Raises:
        ValueError: an option out of its range.
    """

    epochs: int = 5
    lr: float = 1e-4
    weight_decay: float = 0.01
    effective_batch: int = 8
    batch_size: int = 8
    clip: float = 1.0
    patience: int = 2
    checkpointing: bool = True
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    seed: int = 42
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("epochs", "effective_batch", "batch_size", "patience", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected more than 0")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: got {self.weight_decay}, expected 0 or more")
        if self.precision not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"precision: got {self.precision!r}, expected 'auto', 'bfloat16' or 'float32'")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over the training samples.

    Attributes:
        number: from 1.
        train_loss: mean over its samples of the mean loss of their answer's tokens when they were seen, nats.
        validation_loss: the same of the validation samples after it, without dropout.
        samples: samples seen.
        seconds: time without validation.
    """

    number: int
    train_loss: float
    validation_loss: float
    samples: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Training:
    """A finished run.

    Attributes:
        epochs: every epoch that ran.
        best_epoch: whose weights the adapter has now.
        steps: optimiser steps.
        stopped_early: whether patience ended it before the last epoch.
        retried: batches that did not fit into memory and ran again in parts.
        parameters: weights of the adapter.
    """

    epochs: tuple[Epoch, ...]
    best_epoch: int
    steps: int
    stopped_early: bool
    retried: int
    parameters: int
