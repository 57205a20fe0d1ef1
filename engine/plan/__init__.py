"""What a capture will need, before it runs. Names, and torch, are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching import choose_batching
    from .check import Limit, check_capture, check_streaming, refuse

_HOME = {
    "Limit": "check",
    "check_capture": "check",
    "check_streaming": "check",
    "choose_batching": "batching",
    "refuse": "check",
}

__all__ = [
    "Limit",
    "check_capture",
    "check_streaming",
    "choose_batching",
    "refuse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
