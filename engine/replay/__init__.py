"""Replay: stored rows, prompt and target through the decoder, without encoder or media. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cross import cross_scores
    from .generation import greedy
    from .items import ReplayItem
    from .runner import Edit, GradientBatch, Replay
    from .source import ReplaySource, open_source

_HOME = {
    "Edit": "runner",
    "GradientBatch": "runner",
    "Replay": "runner",
    "ReplayItem": "items",
    "ReplaySource": "source",
    "cross_scores": "cross",
    "greedy": "generation",
    "open_source": "source",
}

__all__ = [
    "Edit",
    "GradientBatch",
    "Replay",
    "ReplayItem",
    "ReplaySource",
    "cross_scores",
    "greedy",
    "open_source",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
