"""`train`: an adapter on stored rows, with early stopping, resumable at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.backoff import Backoff
from modegap.engine.models.fused import fused_layers
from modegap.engine.models.hooks import evaluating
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.replay import Replay, ReplaySource
from modegap.engine.replay.decoder import mean_by_item, token_log_probs

from .adapters import Adapter, State
from .batches import epoch_batches
from .config import Epoch, TrainConfig, Training
from .state import Position, load_state, save_state

Progress = Callable[[int, int], None]


def train(
    loaded: LoadedModel,
    adapter: Adapter,
    source: ReplaySource,
    members: Sequence[int],
    validation: Sequence[int],
    config: TrainConfig,
    *,
    checkpoint: Path,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Training:
    """Trains an adapter that is in the model; it has the weights of the best epoch afterwards.

    The loss is the cross-entropy of the source's target tokens given prompt and stored rows. The run's state is
    saved to `checkpoint`; killed at any moment and called again, it goes on from there and ends with the same
    weights as an uninterrupted run on the same machine. The caller's random state is kept.

    Args:
        loaded: the model.
        adapter: from `fresh`.
        source: sequences with their targets.
        members: numbers of the source's samples to train on.
        validation: those that early stopping looks at.
        config: the options.
        checkpoint: file for the run's state.
        facts: what must agree when a run is continued, beside the options and the samples.
        progress: called as `progress(samples seen, samples in all epochs)`.

    Raises:
        EngineError: the checkpoint is of another run, the loss is not finite, or a sample does not fit into memory.
    """
    run = Run(loaded, adapter, source, members, validation, config, checkpoint, facts or {}, progress)
    devices = list(range(torch.cuda.device_count())) if loaded.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        return run()


class Run:
    """The steps of `train`, which says what the arguments are; a benchmark times `step`."""

    def __init__(
        self,
        loaded: LoadedModel,
        adapter: Adapter,
        source: ReplaySource,
        members: Sequence[int],
        validation: Sequence[int],
        config: TrainConfig,
        checkpoint: Path,
        facts: Mapping[str, Any],
        progress: Progress | None,
    ) -> None:
        """Reads and computes nothing yet."""
        self.loaded, self.adapter, self.source, self.config = loaded, adapter, source, config
        self.members, self.validation = list(members), list(validation)
        self.checkpoint, self.progress = checkpoint, progress or (lambda done, total: None)
        self.replay = Replay(loaded, source, batch_size=config.batch_size)
        self.lengths = [len(item) for item in source.items]
        self.weights = list(adapter.parameters.values())
        self.optimiser = torch.optim.AdamW(self.weights, lr=config.lr, weight_decay=config.weight_decay)
        self._backoff: Backoff[int] = Backoff(lambda n: source.items[n].id, self.replay.note_retry)
        self.best: State = {}
        self.position = Position()
        self.facts = {
            **facts,
            **{name: value for name, value in asdict(config).items() if name != "save_every"},
            "training samples": [source.items[number].id for number in self.members],
            "validation samples": [source.items[number].id for number in self.validation],
        }
        self.half = autocasts(loaded, config)

    def __call__(self) -> Training:
        """All steps that are left."""
        found = load_state(self.checkpoint, self.facts, self.adapter, self.optimiser)
        if found is not None:
            self.position, self.best = found
        at = self.position
        with training_mode(self.loaded, self.adapter, self.config):
            while not at.finished:
                self._epoch()
        self.adapter.load(self.best)
        assert at.best_epoch is not None
        return Training(
            epochs=tuple(Epoch(**entry) for entry in at.history),
            best_epoch=at.best_epoch,
            steps=at.steps,
            stopped_early=at.epoch < self.config.epochs,
            retried=len(self.replay.retried),
            parameters=sum(weight.numel() for weight in self.weights),
        )

    def _epoch(self) -> None:
        at, config = self.position, self.config
        steps = epoch_batches(
            self.members, self.lengths, config.effective_batch, seed=config.seed, epoch=at.epoch
        )
        total = config.epochs * len(self.members)
        with closing(self.replay.ahead(steps[at.step :])) as coming:
            began = time.perf_counter()  # waiting for rows counts
            for members in coming:
                at.loss += self.step(members)
                at.seconds += time.perf_counter() - began
                at.samples += len(members)
                at.step, at.steps = at.step + 1, at.steps + 1
                self.progress(at.epoch * len(self.members) + at.samples, total)
                if at.steps % config.save_every == 0 and at.step < len(steps):
                    self._save()
                began = time.perf_counter()
        self._close_epoch()
        self._save()

    def step(self, members: Sequence[int]) -> float:
        """One optimiser step; the sum of the samples' losses before it."""
        loss = self.accumulate(members)
        if not math.isfinite(loss):
            raise EngineError(
                f"the loss is not finite at step {self.position.steps + 1}; lower lr, or use another precision"
            )
        torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
        self.optimiser.step()
        return loss

    def accumulate(self, members: Sequence[int]) -> float:
        """Leaves the gradient of the samples' mean loss in the weights' `grad`; the sum of their losses."""
        for weight in self.weights:
            weight.grad = None
        loss = 0.0
        size = min(self.config.batch_size, self.position.limit or self.config.batch_size)
        for start in range(0, len(members), size):
            for _, (gradients, value) in self._backoff.run(
                members[start : start + size], lambda part: self._gradients(part, len(members))
            ):
                loss += value
                # added when a batch is through: what one that does not fit has left behind must not count
                for weight, gradient in zip(self.weights, gradients, strict=True):
                    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        self.position.limit = self._backoff.limit or self.position.limit
        return loss

    @torch.enable_grad()
    def _gradients(self, part: Sequence[int], count: int) -> tuple[tuple[torch.Tensor, ...], float]:
        items = [self.source.items[number] for number in part]
        z = torch.cat([self.replay.rows(number) for number in part])
        with _autocast(self.loaded, enabled=self.half):
            # no shared beginning: its keys and values depend on the weights that are trained
            packed = self.replay.decoder.pack(items, z, share=False)
            log_q = token_log_probs(self.replay.decoder.logits(packed), packed.labels)
        loss = -mean_by_item(log_q, packed.counts).sum()
        return torch.autograd.grad(loss / count, self.weights), float(loss.detach())

    def _close_epoch(self) -> None:
        at = self.position
        validation = self._validate()
        at.history.append(
            {
                "number": at.epoch + 1,
                "train_loss": at.loss / max(at.samples, 1),
                "validation_loss": validation,
                "samples": at.samples,
                "seconds": at.seconds,
            }
        )
        if at.best is None or validation < at.best:
            at.best, at.best_epoch, at.waited = validation, at.epoch + 1, 0
            self.best = self.adapter.state()
        else:
            at.waited += 1
        at.epoch, at.step, at.loss, at.samples, at.seconds = at.epoch + 1, 0, 0.0, 0, 0.0
        at.finished = at.epoch >= self.config.epochs or at.waited >= self.config.patience

    def _validate(self) -> float:
        # a new replay: one that ran before has keys and values of shared beginnings under other weights
        replay = Replay(self.loaded, self.source, batch_size=self.config.batch_size, fused=False)
        with _autocast(self.loaded, enabled=self.half):
            losses = replay.losses(members=self.validation)
        found = float(np.mean(losses))
        if not math.isfinite(found):
            raise EngineError("the validation loss is not finite; lower lr, or use another precision")
        return found

    def _save(self) -> None:
        save_state(self.checkpoint, self.facts, self.position, self.adapter, self.optimiser, self.best)


def autocasts(loaded: LoadedModel, config: TrainConfig) -> bool:
    """Whether training computes under bf16 autocast."""
    if config.precision == "auto":
        return loaded.device.type == "cuda"
    return config.precision == "bfloat16"


@contextmanager
def training_mode(loaded: LoadedModel, adapter: Adapter, config: TrainConfig) -> Iterator[None]:
    """The decoder with dropout and, where asked for, checkpointing; everything is as before when the block ends.

    The encoder stays in evaluation mode: it is not run.
    """
    assert loaded.structure is not None
    decoder: Any = loaded.model.get_submodule(loaded.structure.decoder)
    with ExitStack() as stack:
        stack.enter_context(evaluating(loaded.model))
        stack.callback(decoder.eval)
        decoder.train()
        if autocasts(loaded, config):
            from peft.helpers import disable_input_dtype_casting

            # peft would copy every input to fp32 first, for autocast to make it bf16 again
            stack.enter_context(disable_input_dtype_casting(adapter.model))
        if config.checkpointing:
            stack.enter_context(_checkpointing(loaded.name, decoder))
        stack.enter_context(fused_layers(decoder))
        yield


@contextmanager
def _checkpointing(name: str, decoder: Any) -> Iterator[None]:
    """transformers' gradient checkpointing in the decoder, not re-entrant: the other kind drops hooks' gradients."""
    kind = (
        "activation" if hasattr(decoder, "activation_checkpointing_enable") else "gradient"
    )  # its name in v6
    begin = getattr(decoder, f"{kind}_checkpointing_enable", None)
    if begin is None or not getattr(decoder, "supports_gradient_checkpointing", False):
        raise EngineError(
            f"the decoder of {name} knows no gradient checkpointing; train with checkpointing=False"
        )
    begin({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(decoder, f"{kind}_checkpointing_disable")()


def _autocast(loaded: LoadedModel, *, enabled: bool) -> torch.autocast:
    return torch.autocast(loaded.device.type, dtype=torch.bfloat16, enabled=enabled)
