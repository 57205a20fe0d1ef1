"""Where stored adapter rows enter a decoder again, without encoder and media."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from modegap.engine.errors import EngineError

from .points import HookPoint
from .structure import Structure

if TYPE_CHECKING:
    from .loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class ReplayEntry:
    """How the rows of `adapter_output` and a prompt become the decoder's input.

    The decoder is fed `inputs_embeds` [B, T, d]: the embedding's output for every text token, and the sample's
    stored rows, in order, at its placeholders. Beside it go `attention_mask` [B, T] and `position_ids` that
    count real tokens from 0 (`LoadedModel.place` makes both).

    Attributes:
        embedding: module path of the input embeddings.
        decoder: module path of what takes `inputs_embeds` and puts out the final hidden states.
        head: module path of the language model head; None if the model has none.
        token: id of the placeholder; None for a text model, whose replay is a plain forward.
        unsupported: why rows alone do not make the decoder's input; None if they do.
    """

    embedding: str
    decoder: str
    head: str | None
    token: int | None
    unsupported: str | None

    def inputs_embeds(
        self, loaded: LoadedModel, input_ids: torch.Tensor, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """The decoder's input [B, T, d]; gradients flow to `rows`.

        Args:
            loaded: the model.
            input_ids: int64 [B, T], on the model's device.
            rows: [n, d], the batch's adapter rows in reading order; None for text.

        Raises:
            EngineError: this model's decoder needs more than the rows, or their number is not that of the
                placeholders.
        """
        if self.unsupported is not None:
            raise EngineError(f"{loaded.name} cannot replay adapter rows: {self.unsupported}")
        embedding = loaded.model.get_submodule(self.embedding)
        if self.token is None or rows is None:
            text: torch.Tensor = embedding(input_ids)
            return text
        return scatter(embedding, input_ids, rows, self.token)


def scatter(embedding: nn.Module, input_ids: torch.Tensor, rows: torch.Tensor, token: int) -> torch.Tensor:
    """Embeddings of `input_ids` [B, T] with `rows` [n, d] at the positions that hold `token`: [B, T, d].

    Raises:
        EngineError: another number of rows than of such positions.
    """
    where = input_ids == token
    count = int(where.sum())
    if count != len(rows):
        raise EngineError(
            f"got {len(rows)} adapter rows for {count} placeholders in input_ids; give the rows of the same "
            "samples, prepared by the same processor"
        )
    # a placeholder may have no row in the embedding table
    x: torch.Tensor = embedding(input_ids.masked_fill(where, 0))
    return x.masked_scatter(where[..., None].to(x.device), rows.to(x.device, x.dtype))


def replay_entry(
    model: nn.Module,
    structure: Structure | None,
    points: Mapping[str, HookPoint],
    token: int | None,
    *,
    many_axes: bool,
    parameters: Collection[str],
) -> ReplayEntry | None:
    """The entry of a model; None where no decoder was found.

    Args:
        model: the model.
        structure: its parts.
        points: its hook points.
        token: the media placeholder; None for a text model.
        many_axes: whether positions count over time, height and width.
        parameters: names that the model's forward takes.
    """
    if structure is None:
        return None
    get = getattr(model, "get_output_embeddings", None)
    head = get() if get is not None else None
    path = next((name for name, module in model.named_modules() if module is head), None)
    reason = None if token is None else _obstacle(model, structure, points, many_axes, parameters)
    return ReplayEntry(structure.embedding, structure.decoder, path, token, reason)


def _obstacle(
    model: nn.Module,
    structure: Structure,
    points: Mapping[str, HookPoint],
    many_axes: bool,
    parameters: Collection[str],
) -> str | None:
    if structure.crossed:
        return "its decoder reads them by cross-attention in several layers, not as tokens"
    if any("deepstack" in name for name, _ in model.named_modules()):
        return "its encoder also feeds the decoder's first layers (deepstack)"
    if hasattr(model.get_submodule(structure.decoder), "embed_tokens_per_layer"):
        return "its decoder embeds the tokens again for every layer"
    if many_axes:
        return "its positions count over the image grid, which a store does not hold"
    if "token_type_ids" in parameters:
        return (
            "its media tokens attend to each other in both directions, by a mask that a store does not hold"
        )
    adapter = points.get("adapter_output")
    if adapter is None:
        return "its adapter was not found"
    if adapter.token is not None and adapter.module_path != structure.decoder:
        return "its decoder puts the rows in by itself"
    return None
