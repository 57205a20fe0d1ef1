"""GMI: how much of the representation's information the decoder can use, and how much stays out of its reach."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import gmi
    from .config import GmiConfig
    from .outcome import Attribute, GmiResult, LawGmi

__all__ = ["Attribute", "GmiConfig", "GmiResult", "LawGmi", "gmi"]

_HOMES = {
    "Attribute": "outcome",
    "GmiConfig": "config",
    "GmiResult": "outcome",
    "LawGmi": "outcome",
    "gmi": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
