"""The call that a decoder gets, as tensors and JSON: so that it can be made again for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from modegap.engine.errors import EngineError

_TENSOR, _TUPLE = "$tensor", "$tuple"
# what the working store replaces: the hidden states take their place
EMBEDDINGS = ("input_ids", "inputs_embeds")


def pack(kwargs: Mapping[str, Any], module: str) -> tuple[dict[str, torch.Tensor], Any]:
    """Tensors by name and a JSON tree that says where each stands.

    Raises:
        EngineError: an argument that is neither tensor, number, text, None nor made of those.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value
            return {_TENSOR: path}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Mapping):
            return {str(key): walk(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [walk(item, f"{path}.{i}") for i, item in enumerate(value)]
            return {_TUPLE: items} if isinstance(value, tuple) else items
        raise EngineError(
            f"{module} is called with {path} of type {type(value).__name__}, which cannot be kept between layers; "
            'load the model with device_map="auto" instead'
        )

    given = {key: value for key, value in kwargs.items() if key not in EMBEDDINGS}
    return tensors, {key: walk(value, key) for key, value in given.items()}


def unpack(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The arguments again."""
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        if _TUPLE in tree:
            return tuple(unpack(item, tensors) for item in tree[_TUPLE])
        return {key: unpack(item, tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    return tree
