"""Results beside each other: pooling, encoders under one text law, and the published numbers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .against import PublishedResult, beside_published
    from .encoding import EncoderResult, encoders
    from .media import PoolingResult, pooling
    from .paper import Published, published

__all__ = [
    "EncoderResult",
    "PoolingResult",
    "Published",
    "PublishedResult",
    "beside_published",
    "encoders",
    "pooling",
    "published",
]

_HOMES = {
    "EncoderResult": "encoding",
    "PoolingResult": "media",
    "Published": "paper",
    "PublishedResult": "against",
    "beside_published": "against",
    "encoders": "encoding",
    "pooling": "media",
    "published": "paper",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
