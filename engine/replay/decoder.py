"""`Decoder`: a model's language model and head, fed with embeddings instead of media."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel

from .items import Int, ReplayItem
from .prefix import SharedPrefix, layers_of

# A shared beginning pays where it is a real part of the sequence: with a cache, attention takes an explicit mask.
MIN_SHARED = 16
MIN_SHARE = 0.05
# Rows of logits turned to fp32 at a time: 1,024 of 128k words are half a gigabyte.
_LOGIT_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A batch of B sequences on the device, padded on the right to T positions.

    Attributes:
        embeds: [B, T, d].
        wanted: bool [B, T] on the host, true where the head is needed: before every scored token.
        labels: the scored tokens in reading order, int64 [n].
        counts: scored tokens of each sequence [B].
        shared: leading positions that were cut off because all sequences share them.
        beginning: token ids of those, int64 [shared].
    """

    embeds: torch.Tensor
    wanted: torch.Tensor
    labels: torch.Tensor
    counts: tuple[int, ...]
    shared: int
    beginning: Int


class Decoder:
    """Runs sequences through the language model; everything about media stays out.

    Sequences are padded on the right and run without an attention mask: in a causal decoder no real position
    sees the padding behind it, and attention without a mask takes the fast kernels.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Finds embedding and head.

        Raises:
            EngineError: the model has no head, does not take embeddings, or its decoder needs more than the rows.
        """
        self.loaded = loaded
        entry = loaded.replay
        if entry is not None and entry.unsupported is not None and loaded.modality != "text":
            raise EngineError(
                f"{loaded.name} cannot be replayed from stored rows: {entry.unsupported}; run the whole model on its "
                "media instead"
            )
        model: Any = loaded.model
        head: Any = getattr(model, "get_output_embeddings", lambda: None)()
        if not isinstance(head, nn.Module):
            raise EngineError(
                f"{loaded.name} has no language model head to score with; load the ...ForCausalLM class"
            )
        self.head = head
        self.model = _speaker(model, None if entry is None else entry.decoder)
        self.embedding = model.get_input_embeddings()
        self._caches: dict[bytes, list[tuple[torch.Tensor, torch.Tensor]] | None] = {}

    @property
    def device(self) -> torch.device:
        """Where embeddings go."""
        return self.loaded.device

    @property
    def vocabulary(self) -> int:
        """Words that the head chooses among."""
        weight = getattr(self.head, "weight", None)
        if isinstance(weight, torch.Tensor):
            return int(weight.shape[0])
        config = self.model.config
        return int(getattr(config, "text_config", config).vocab_size)

    def pack(self, items: Sequence[ReplayItem], z: torch.Tensor, *, share: bool = True) -> Packed:
        """The batch of sequences with the rows `z` [sum t, d] in their slots, one item after the other.

        Gradients flow to `z`. With `share`, a beginning that all items have in common and that no row stands in
        is cut off where that pays.
        """
        cut = self._shared(items) if share and not z.requires_grad else 0
        width = max(len(item) for item in items) - cut
        tokens = torch.zeros((len(items), width), dtype=torch.long)
        wanted = torch.zeros((len(items), width), dtype=torch.bool)
        at_row, at_position = [], []
        for row, item in enumerate(items):
            tokens[row, : len(item) - cut] = torch.from_numpy(item.tokens[cut:])
            # overwritten below; a placeholder may have no row in the embedding table
            tokens[row, torch.from_numpy(item.slot - cut)] = 0
            wanted[row, torch.from_numpy(item.target - 1 - cut)] = True
            at_row.append(np.full(len(item.slot), row))
            at_position.append(item.slot - cut)
        with torch.no_grad():
            embeds = self.embedding(tokens.to(self.device, non_blocking=True))
        rows = torch.from_numpy(np.concatenate(at_row)).to(embeds.device, non_blocking=True)
        positions = torch.from_numpy(np.concatenate(at_position)).to(embeds.device, non_blocking=True)
        embeds = embeds.index_put((rows, positions), z.to(embeds.device, embeds.dtype))
        labels = torch.from_numpy(np.concatenate([item.tokens[item.target] for item in items]))
        labels = labels.to(self.device, non_blocking=True)
        counts = tuple(len(item.target) for item in items)
        return Packed(embeds, wanted, labels, counts, cut, items[0].tokens[:cut])

    def logits(self, packed: Packed) -> torch.Tensor:
        """Logits before every scored token, [n, vocabulary], in the model's dtype."""
        options: dict[str, Any] = {"use_cache": False}
        if packed.shared:
            layers = self._beginning(packed.beginning)
            assert layers is not None
            rows = torch.zeros(len(packed.embeds), dtype=torch.long)
            options = {"use_cache": True, "past_key_values": SharedPrefix(layers, rows)}
        with self._only(packed.wanted):
            found = self.model(inputs_embeds=packed.embeds, **options).logits
        if found.dim() != 3 or found.shape[:-1] != (1, len(packed.labels)):
            raise EngineError(
                f"{self.loaded.name} changes the shape of its logits ({list(found.shape)}); cannot score it"
            )
        logits: torch.Tensor = found[0]
        return logits

    def prefill(
        self, embeds: torch.Tensor
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]] | None]:
        """Runs prefixes [B, P, d] that continuations will share.

        Returns:
            (logits behind the last position [B, vocabulary], keys and values of every layer, or None where the
            model's cache cannot be shared).
        """
        wanted = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        wanted[:, -1] = True
        with self._only(wanted):
            out = self.model(inputs_embeds=embeds, use_cache=True)
        return out.logits[0], layers_of(out.past_key_values)

    def continue_from(
        self,
        layers: list[tuple[torch.Tensor, torch.Tensor]],
        rows: torch.Tensor,
        tokens: torch.Tensor,
        wanted: torch.Tensor,
    ) -> torch.Tensor:
        """Logits at `wanted` bool [C, S] of continuations `tokens` int64 [C, S] behind prefixes `rows` [C]."""
        embeds = self.embedding(tokens.to(self.device))
        with self._only(wanted):
            out = self.model(inputs_embeds=embeds, use_cache=True, past_key_values=SharedPrefix(layers, rows))
        logits: torch.Tensor = out.logits[0]
        return logits

    @contextmanager
    def _only(self, wanted: torch.Tensor) -> Iterator[None]:
        """Feeds the head the wanted positions only: [1, n, d] instead of [B, T, d]."""
        # found on the host: a mask on the device would let the host wait for all layers in front of the head
        positions = wanted.flatten().nonzero().squeeze(1)

        def select(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = args[0]
            if hidden.shape[:-1] != wanted.shape:
                raise EngineError(
                    f"the head of {self.loaded.name} gets {list(hidden.shape)} for {list(wanted.shape)} positions; "
                    "cannot score it"
                )
            at = positions.to(hidden.device, non_blocking=True)
            return (hidden.flatten(0, 1).index_select(0, at).unsqueeze(0), *args[1:])

        handle = self.head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            handle.remove()

    def _shared(self, items: Sequence[ReplayItem]) -> int:
        """Leading positions that are the same tokens in all items, before any row and any scored position."""
        limit = min(min(int(item.slot[0]), item.prompt_length - 1) for item in items)
        first = items[0].tokens
        for item in items[1:]:
            limit = min(limit, int((np.cumprod(first[:limit] == item.tokens[:limit])).sum()))
        longest = max(len(item) for item in items)
        if limit < MIN_SHARED or limit < MIN_SHARE * longest or self._beginning(first[:limit]) is None:
            return 0
        return limit

    @torch.no_grad()
    def _beginning(self, tokens: Int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        key = tokens.tobytes()
        if key not in self._caches:
            if len(self._caches) > 8:  # prompts that differ from sample to sample are not worth keeping
                self._caches.clear()
            embeds = self.embedding(torch.from_numpy(tokens)[None].to(self.device))
            self._caches[key] = self.prefill(embeds)[1]
        return self._caches[key]


def _speaker(model: Any, decoder: str | None) -> Any:
    """The outermost module around the decoder that turns embeddings into logits: the model itself, or its language
    model where the model takes token ids only.

    Raises:
        EngineError: there is none.
    """
    parts = (decoder or "").split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        speaks = getattr(module, "get_output_embeddings", lambda: None)() is model.get_output_embeddings()
        own = getattr(
            module, "get_base_model", lambda module=module: module
        )()  # a PEFT wrapper's says nothing
        if speaks and "inputs_embeds" in inspect.signature(own.forward).parameters:
            return module
    raise EngineError(
        f"{type(model).__name__} does not take inputs_embeds, so stored rows cannot be fed to its decoder; run the "
        "whole model on its media instead"
    )


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log q of each label, fp32 (fp64 for fp64 logits) [n]; differentiable, a block of rows at a time."""
    parts = []
    for start in range(0, len(logits), _LOGIT_ROWS):
        block = logits[start : start + _LOGIT_ROWS]
        precise = block if block.dtype == torch.float64 else block.float()
        wanted = labels[start : start + _LOGIT_ROWS].to(block.device)
        parts.append(-nn.functional.cross_entropy(precise, wanted, reduction="none"))
    return torch.cat(parts)


def mean_by_item(values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Mean of each item's values, fp64 [B] (differentiable)."""
    each = torch.tensor(counts)
    owner = torch.repeat_interleave(torch.arange(len(counts)), each).to(values.device, non_blocking=True)
    sums = torch.zeros(len(counts), dtype=torch.float64, device=values.device)
    return sums.index_add(0, owner, values.double()) / each.to(values.device, non_blocking=True)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient while the block runs, so that a backward keeps no weight's inputs."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
