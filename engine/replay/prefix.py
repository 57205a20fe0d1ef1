"""Keys and values of a shared beginning, computed once and joined to every continuation."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache


def layers_of(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Keys and values [B, heads, P, width] of every layer; None where a layer forgets (sliding window, states).

    Only caches that keep every position can be shared exactly.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:  # transformers before 4.54
        if type(cache) is not DynamicCache:
            return None
        old: Any = cache
        return list(zip(old.key_cache, old.value_cache, strict=True))
    if type(cache) is not DynamicCache or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
        return None
    found = [(layer.keys, layer.values) for layer in layers]
    return found if all(isinstance(keys, torch.Tensor) for keys, _ in found) else None


class SharedPrefix(DynamicCache):
    """A cache that is read and never grows: attention sees the prefix and the tokens at hand.

    A growing cache would keep every layer's keys and values of all continuations until the forward ends; here
    they live for one layer. `rows` says which sequence of the prefix each continuation follows.
    """

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], rows: torch.Tensor) -> None:
        """`layers` as `layers_of` gives them; `rows` int64 [continuations], indices into their first axis."""
        super().__init__()
        self._prefix = layers
        self._rows = rows
        self._length = int(layers[0][0].shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix' keys and values in front of the given ones."""
        keys, values = self._prefix[layer_idx]
        rows = self._rows.to(keys.device)
        return (
            torch.cat([keys.index_select(0, rows), key_states], dim=-2),
            torch.cat([values.index_select(0, rows), value_states], dim=-2),
        )

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """Positions of the prefix."""
        return self._length

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Keys that queries see, and the first one's position; a length or a tensor of positions is given."""
        count = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self._length + count, 0
