"""The paper's bounds beside what was measured: do they hold, and how loose are they?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import bound
    from .config import BoundConfig
    from .outcome import BoundResult, Pair, Penalty, Prefactor

__all__ = ["BoundConfig", "BoundResult", "Pair", "Penalty", "Prefactor", "bound"]

_HOMES = {
    "BoundConfig": "config",
    "BoundResult": "outcome",
    "Pair": "outcome",
    "Penalty": "outcome",
    "Prefactor": "outcome",
    "bound": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
