"""Ultravox's speech encoder on transformers' Whisper weights: any length, padding masked."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


class SpeechEncoder(nn.Module):
    """Whisper's encoder run on the frames that there are instead of on 30 seconds.

    Longer speech is encoded in chunks of Whisper's context (30 s), each by itself. What leaves the encoder for
    a sample does not depend on the other samples of its batch: masked attention alone would not do, since the
    convolutions reach over the end of the sound.

    Args:
        whisper: transformers' `WhisperEncoder`.
        block: encoder frames that share what they may attend to: their own block and all before it (streaming);
            None for full attention.
    """

    whisper: Any

    def __init__(self, whisper: Any, block: int | None = None) -> None:
        """Uses the parts of `whisper`, not its forward."""
        super().__init__()
        self.whisper = whisper
        self.block = block
        stride = whisper.conv1.stride[0] * whisper.conv2.stride[0]
        self.context = int(whisper.config.max_source_positions * stride)
        layer = whisper.layers[0]
        # transformers 4 asks for a head mask that transformers 5 does not know
        known = inspect.signature(layer.forward).parameters
        self._head_mask = {"layer_head_mask": None} if "layer_head_mask" in known else {}

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, frames, d], zero beyond each sample's own frames.

        Args:
            features: log-mel features [B, mels, T], T even, and a multiple of the context where it is longer.
            lengths: mel frames of each sample, int64 [B]; encoder frames are half of them, rounded up.
        """
        encoded = []
        for start in range(0, features.shape[2], self.context):
            piece = features[:, :, start : start + self.context]
            own = (lengths - start).clamp(min=0, max=self.context)
            # the last chunk of a long sample was padded to the full context in training, and is seen so
            extent = torch.where(lengths > self.context, piece.shape[2], own)
            rows = (own > 0).nonzero().flatten()
            found = self._encode(piece[rows], own[rows], extent[rows])
            if len(rows) < len(own):
                found = found.new_zeros((len(own), *found.shape[1:])).index_copy(0, rows, found)
            encoded.append(found)
        return torch.cat(encoded, dim=1)

    def _encode(self, features: torch.Tensor, lengths: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
        whisper, frames = self.whisper, torch.arange(features.shape[2], device=features.device)
        x = nn.functional.gelu(whisper.conv1(features))
        # beyond its end a sample alone has the second convolution's zero padding
        x = x * (frames < extent[:, None])[:, None].to(x.dtype)
        x = nn.functional.gelu(whisper.conv2(x)).permute(0, 2, 1)
        count = x.shape[1]
        x = x + whisper.embed_positions.weight[:count]
        index = torch.arange(count, device=x.device)
        valid = index < ((lengths + 1) // 2)[:, None]
        seen = valid[:, None, :].expand(-1, count, -1)
        if self.block is not None:
            blocks = index // self.block
            seen = seen & (blocks[None, :] <= blocks[:, None])
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(~seen, torch.finfo(x.dtype).min)[:, None]
        for layer in whisper.layers:
            x = layer(x, mask, **self._head_mask)
            x = x[0] if isinstance(x, tuple) else x
        x = whisper.layer_norm(x)
        encoded: torch.Tensor = x * (index < ((extent + 1) // 2)[:, None])[..., None].to(x.dtype)
        return encoded
