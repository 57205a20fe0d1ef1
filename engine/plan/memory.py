"""How much memory a capture takes, from shapes alone.

Per forward, with B samples padded to L positions (T = B L tokens), e bytes a value, width d and feed-forward
width f, a decoder layer of the Llama kind holds at its peak the residual and the normed stream (2 T d e), gate,
up and their product (3 T f e) or queries, keys, values and the output (4 T d e), the norm's fp32 copy (4 T d),
and the mask (B L^2, as booleans and in the model's dtype). Encoder layers are smaller and are gone by then.
Every captured point keeps its rows (T d e) and, on their way to the host, their gathered and their fp16 copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint

MOMENTS_BLOCK_ROWS = 16384
"""Rows of a block of `Moments` on a GPU."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the decoder's memory depends on: width d, feed-forward width f, layers, bytes a value."""

    width: int
    inner: int
    layers: int
    itemsize: int


def decoder_of(loaded: LoadedModel) -> Decoder:
    """The decoder's sizes, from its structure and config; the feed-forward width is 4 d where none is named."""
    config = getattr(loaded.model, "config", None)
    text = _text_config(config)
    width = loaded.hidden_size or int(getattr(text, "hidden_size", 0) or 1)
    inner = _inner(text, width)
    layers = 0 if loaded.structure is None else loaded.structure.n_layers
    return Decoder(width, inner, layers, loaded.dtype.itemsize)


def forward_bytes(decoder: Decoder, samples: int, length: int) -> int:
    """Peak bytes of one forward's activations; points not counted."""
    tokens, e, d, f = samples * length, decoder.itemsize, decoder.width, decoder.inner
    stream = 2 * tokens * d * e + 4 * tokens * d
    mask = samples * length**2 * (1 + e)
    return stream + max(3 * tokens * f * e, 4 * tokens * d * e) + mask


def rows_bytes(points: Sequence[HookPoint], width: int, tokens: int, itemsize: int) -> int:
    """Bytes that the captured points of the batch in the model and of the one before hold on the device."""
    kept = tokens * width * itemsize
    leaving = tokens * width * (itemsize + 2)
    return len(points) * (kept + 2 * leaving)


def moments_bytes(widths: Sequence[int], *, classes: int = 0) -> int:
    """Bytes of the stats-only accumulators: fp64 d x d and three fp16 blocks for token and for pooled rows."""
    each = [8 * d * d + 3 * 2 * MOMENTS_BLOCK_ROWS * d for d in widths]
    return sum(each) * 2 * (2 if classes else 1)


def weight_bytes(model: torch.nn.Module) -> dict[str, int]:
    """Bytes of parameters and buffers by device; shared ones once, those on `meta` included."""
    seen: set[int] = set()
    found: dict[str, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            key = str(tensor.device)
            found[key] = found.get(key, 0) + tensor.numel() * tensor.element_size()
    return found


def _text_config(config: Any) -> Any:
    get = getattr(config, "get_text_config", None)
    found = get() if callable(get) else None
    return found if found is not None else getattr(config, "text_config", None) or config


def _inner(text: Any, width: int) -> int:
    for key in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        value = getattr(text, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return 4 * width
