"""The batch size for a model, from the memory that is free."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modegap.engine.capture.schedule import Batching
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint

from .capacity import free_memory
from .memory import Decoder, decoder_of, forward_bytes, rows_bytes

# 2 flops x 7e9 weights x 16,384 tokens take an H100 a third of a second, ten times what launching the kernels of
# a forward takes: more tokens would only cost memory.
GPU_TOKENS = 16_384
HOST_TOKENS = 2_048
MOST_SAMPLES = 256
_SHARE = 0.6


def choose_batching(
    loaded: LoadedModel,
    points: Sequence[HookPoint],
    longest: int,
    free: int | None = None,
    reserve: int = 0,
) -> Batching:
    """Most samples and padded tokens of a batch.

    On a GPU as many tokens as keep it busy, fewer where 0.6 of the free memory does not hold them; on the
    host, which is busy at any size, 2,048. One sample always fits the batch, however long.

    Args:
        loaded: the model, its weights in place.
        points: what is captured.
        longest: tokens of the longest sample.
        free: free bytes of the fullest device; asked of it unless given.
        reserve: bytes of it that are for something else.
    """
    if loaded.device.type != "cuda" and free is None:
        return Batching(MOST_SAMPLES, max(HOST_TOKENS, longest))
    held = min(free_memory(device) for device in _devices(loaded)) if free is None else free
    room = _SHARE * (held - reserve)
    decoder = decoder_of(loaded)
    tokens = GPU_TOKENS
    while tokens > longest and batch_bytes(decoder, points, tokens, longest) > room:
        tokens //= 2
    return Batching(MOST_SAMPLES, max(tokens, longest))


def batch_bytes(decoder: Decoder, points: Sequence[HookPoint], tokens: int, longest: int) -> int:
    """Device memory of a batch of `tokens` padded tokens in samples of the longest length, weights not counted."""
    samples = max(1, tokens // max(1, longest))
    held = rows_bytes(points, decoder.width, samples * longest, decoder.itemsize)
    return forward_bytes(decoder, samples, longest) + held


def _devices(loaded: LoadedModel) -> set[torch.device]:
    return {weight.device for weight in loaded.model.parameters() if weight.device.type == "cuda"}
