"""What a capture will need, before it runs. Names, and torch, are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batching import choose_batching
    from .check import Limit, check_capture, check_streaming, refuse
    from .planning import CapturePlan, PointBytes, check_weights, plan

_HOME = {
    "CapturePlan": "planning",
    "Limit": "check",
    "PointBytes": "planning",
    "check_capture": "check",
    "check_streaming": "check",
    "check_weights": "planning",
    "choose_batching": "batching",
    "plan": "planning",
    "refuse": "check",
}

__all__ = [
    "CapturePlan",
    "Limit",
    "PointBytes",
    "check_capture",
    "check_streaming",
    "check_weights",
    "choose_batching",
    "plan",
    "refuse",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
