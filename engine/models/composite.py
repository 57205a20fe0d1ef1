"""A media encoder, an adapter and a causal language model put together from transformers' own parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .replay import scatter


@dataclass(frozen=True, slots=True)
class CompositeConfig:
    """What the rest of modegap asks of a model's `config`.

    Attributes:
        model_type: family.
        text_config: transformers' config of the language model.
        media_token_id: placeholder of a media row in `input_ids`; it needs no row in the embedding table.
        settings: the published settings it was built from.
    """

    model_type: str
    text_config: Any
    media_token_id: int
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {
            "model_type": self.model_type,
            "text_config": self.text_config.to_dict(),
            "media_token_id": self.media_token_id,
            "settings": dict(self.settings),
        }


class Composite(nn.Module):
    """Encoder and adapter come from a subclass; this embeds text, puts media rows in, and decodes.

    Args:
        language_model: a transformers `...ForCausalLM`.
        config: see there.
    """

    language_model: Any

    def __init__(self, language_model: nn.Module, config: CompositeConfig) -> None:
        """Keeps the language model as it is: its dtype, devices and accelerate hooks."""
        super().__init__()
        self.language_model = language_model
        self.config = config

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        found: nn.Module = self.language_model.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        found: nn.Module = self.language_model.get_output_embeddings()
        return found

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        found: nn.Module = self.language_model.get_decoder()
        return found

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """As transformers' models have it; the encoder is not trained."""
        self.language_model.gradient_checkpointing_enable(**options)

    def gradient_checkpointing_disable(self) -> None:
        """Undoes the above."""
        self.language_model.gradient_checkpointing_disable()

    def decode(self, input_ids: torch.Tensor, rows: torch.Tensor | None, **options: Any) -> Any:
        """The language model's output for `input_ids` [B, T] with media `rows` [n, d] at the placeholders."""
        embedding = self.get_input_embeddings()
        token = self.config.media_token_id
        embeds = embedding(input_ids) if rows is None else scatter(embedding, input_ids, rows, token)
        return self.language_model(inputs_embeds=embeds, **options)
