"""`target_nll`: how well the decoder predicts each sample's text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modegap.engine.datasets.base import Sample
from modegap.engine.errors import EngineError

from .backoff import Backoff
from .collate import Inputs
from .edit import edit as edited
from .hooks import evaluating
from .loaded import LoadedModel

log = logging.getLogger(__name__)
Edit = tuple[str, Callable[[torch.Tensor], torch.Tensor]]


@torch.no_grad()
def target_nll(
    loaded: LoadedModel,
    samples: Iterable[Sample],
    *,
    batch_size: int = 8,
    edit: Edit | None = None,
    prompt: str | None = None,
) -> NDArray[np.float64]:
    """Mean negative log likelihood of each sample's target tokens, nats a token: fp64 [samples].

    For sample i with target positions P_i, `-1/|P_i| sum_{t in P_i} log q(y_t | everything before t)`. The
    head runs on the positions before targets only, the log-softmax in fp32 (fp64 if the model is), the mean
    in fp64. A batch that does not fit into memory is tried again in halves.

    Args:
        loaded: the model.
        samples: media samples, or text ones (see `LoadedModel.collate` for what is scored).
        batch_size: samples a forward.
        edit: hook point name and function, applied as `edit(loaded, point, fn)` would.
        prompt: instead of the family's default prompt.

    Raises:
        ValueError: a batch size below one.
        EngineError: a sample without target text, a model without a head, or an unknown point.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size {batch_size}; expected at least 1")
    head = getattr(loaded.model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        raise EngineError(
            f"{loaded.name} has no language model head to score with; load the ...ForCausalLM class"
        )

    def score(part: Sequence[Sample]) -> list[float]:
        inputs = loaded.collate(part, target=True, prompt=prompt)
        return _mean_by_sample(_token_nll(loaded, head, inputs), inputs)

    def retried(ids: list[str], size: int) -> None:
        log.warning("out of memory: scoring %s to %s again, %d samples at a time", ids[0], ids[-1], size)

    backoff = Backoff(_sample_id, retried)
    found: list[float] = []
    with evaluating(loaded.model), edited(loaded, *edit) if edit is not None else nullcontext():
        for batch in _batched(samples, batch_size):
            for _, values in backoff.run(batch, score):
                found += values
    return np.asarray(found, dtype=np.float64)


def _token_nll(loaded: LoadedModel, head: nn.Module, inputs: Inputs) -> torch.Tensor:
    """NLL of every target token in reading order, fp32 or fp64 [targets]."""
    mask = inputs.target_mask
    before = torch.zeros_like(mask)
    before[:, :-1] = mask[:, 1:]

    def only_needed(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[before.to(hidden.device)].unsqueeze(0), *args[1:])

    # on the head, not on its result: [targets, vocabulary] instead of [batch, positions, vocabulary]
    handle = head.register_forward_pre_hook(only_needed)
    try:
        logits = loaded.forward(inputs).logits
    finally:
        handle.remove()
    wanted = inputs.tensors["input_ids"][mask].to(logits.device)
    if logits.shape[:-1] != (1, len(wanted)):
        raise EngineError(
            f"{loaded.name} changes the shape of its logits ({list(logits.shape)}); cannot score it"
        )
    precise = logits[0] if logits.dtype == torch.float64 else logits[0].float()
    return nn.functional.cross_entropy(precise, wanted, reduction="none")


def _mean_by_sample(nll: torch.Tensor, inputs: Inputs) -> list[float]:
    counts = inputs.target_mask.sum(dim=1).tolist()
    return [float(part.double().mean()) for part in torch.split(nll.cpu(), counts)]


def _batched(samples: Iterable[Sample], size: int) -> Iterable[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _sample_id(sample: Sample) -> str:
    return sample.id
