"""Ultravox as one module: Whisper's encoder, a projector over stacked frames, a language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.composite import Composite, CompositeConfig

from .encoder import SpeechEncoder


class SwiGLU(nn.Module):
    """The first half of the features, gated by the second."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., 2 d] to [.., d]."""
        value, gate = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


class RMSNorm(nn.Module):
    """Root mean square norm in fp32, as Llama's."""

    def __init__(self, width: int) -> None:
        """Weights are loaded."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the shape and dtype of `x`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Projector(nn.Module):
    """Norm, linear, activation, linear, with one more norm: in the middle since v0.5, at the end before.

    Args:
        stacked: width of the stacked frames.
        hidden: width after the first linear layer.
        width: of the language model.
        act: `swiglu`, which halves its input, or one of transformers' activations.
        norm_in_the_middle: where the second norm stands.
    """

    def __init__(self, stacked: int, hidden: int, width: int, act: str, norm_in_the_middle: bool) -> None:
        """Weights are loaded, not drawn."""
        super().__init__()
        from transformers.activations import ACT2FN

        middle = hidden // 2 if act == "swiglu" else hidden
        self.ln_pre = RMSNorm(stacked)
        self.linear_1 = nn.Linear(stacked, hidden, bias=False)
        self.act: nn.Module = SwiGLU() if act == "swiglu" else ACT2FN[act]
        self.ln_mid: nn.Module = RMSNorm(middle) if norm_in_the_middle else nn.Identity()
        self.linear_2 = nn.Linear(middle, width, bias=False)
        self.ln_post: nn.Module = nn.Identity() if norm_in_the_middle else RMSNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, stacked] to [rows, width]."""
        x = self.ln_mid(self.act(self.linear_1(self.ln_pre(x))))
        found: torch.Tensor = self.ln_post(self.linear_2(x))
        return found


class Ultravox(Composite):
    """`q(y | sound, prompt)`; `stack` encoder frames in a row make one token.

    Args:
        audio_tower: see there.
        projector: see there.
        language_model: a transformers `...ForCausalLM`.
        config: see there.
        stack: encoder frames a token.
    """

    hook_points = {  # noqa: RUF012
        "encoder_output": ("audio_tower", "the encoder's frames, before they are stacked")
    }

    def __init__(
        self,
        audio_tower: SpeechEncoder,
        projector: Projector,
        language_model: nn.Module,
        config: CompositeConfig,
        stack: int,
    ) -> None:
        """Takes the parts as they are."""
        super().__init__(language_model, config)
        self.audio_tower = audio_tower
        self.multi_modal_projector = projector
        self.stack = stack

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        feature_attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The language model's output.

        Args:
            input_ids: [B, T], a placeholder for every token of sound.
            attention_mask: [B, T].
            position_ids: [B, T].
            input_features: log-mel features [B, mels, frames]; None for text.
            feature_attention_mask: [B, frames], which of them are the sample's.
            options: passed on to the language model.
        """
        rows = None
        if input_features is not None:
            if feature_attention_mask is None:
                raise EngineError(
                    "got input_features without feature_attention_mask; use the model's processor"
                )
            lengths = feature_attention_mask.sum(dim=1)
            frames = self.audio_tower(input_features, lengths)
            rows = self.multi_modal_projector(self.stacked(frames, lengths))
        return self.decode(
            input_ids, rows, attention_mask=attention_mask, position_ids=position_ids, **options
        )

    def stacked(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The encoder's frames [B, F, d] as [rows, stack * d]: every sample's tokens, chunk by chunk."""
        context, found = self.audio_tower.context, []
        for start in range(0, frames.shape[1], context // 2):
            piece = frames[:, start : start + context // 2]
            own = (lengths - 2 * start).clamp(min=0, max=context)
            piece = nn.functional.pad(piece, (0, 0, 0, -piece.shape[1] % self.stack))
            grouped = piece.reshape(len(piece), -1, self.stack * piece.shape[2])
            count = tokens(own, self.stack)
            found.append((grouped, torch.arange(grouped.shape[1], device=frames.device) < count[:, None]))
        grouped, mask = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return grouped[mask]


def tokens(lengths: torch.Tensor, stack: int) -> torch.Tensor:
    """Tokens that a chunk of so many mel frames makes: one for each `2 * stack`, the last one filled up."""
    return (lengths + 2 * stack - 1) // (2 * stack)
