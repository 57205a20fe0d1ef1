"""Swapping a class's mean component in a subspace: does the decoder notice?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import swap
    from .config import SwapConfig
    from .outcome import Swapped, SwapResult

__all__ = ["SwapConfig", "SwapResult", "Swapped", "swap"]

_HOMES = {"SwapConfig": "config", "SwapResult": "outcome", "Swapped": "outcome", "swap": "compute"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
