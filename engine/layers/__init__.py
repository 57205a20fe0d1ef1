"""Layer streaming: models larger than the device, one decoder layer at a time over the whole data set.

Names, and torch, are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import extract_by_layer, moments_by_layer
    from .checkpoint import CheckpointFiles
    from .feed import LayerFeed
    from .skeleton import skeleton

_HOME = {
    "CheckpointFiles": "checkpoint",
    "LayerFeed": "feed",
    "extract_by_layer": "capture",
    "moments_by_layer": "capture",
    "skeleton": "skeleton",
}

__all__ = [
    "CheckpointFiles",
    "LayerFeed",
    "extract_by_layer",
    "moments_by_layer",
    "skeleton",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
