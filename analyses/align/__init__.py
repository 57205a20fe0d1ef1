"""Mode alignment: which directions of the modal law the text law varies along."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import align
    from .config import AlignConfig
    from .modes import Modes

__all__ = ["AlignConfig", "Modes", "align"]

# Loaded on first use: the options alone, which a command line needs for its help, import no torch.
_HOMES = {
    "AlignConfig": "config",
    "Modes": "modes",
    "align": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
