"""Which information lies along modality-specific modes: the between-class scatter of each label."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import pertype
    from .config import PertypeConfig
    from .outcome import Correlation, PertypeResult, TypeAlignment

__all__ = ["Correlation", "PertypeConfig", "PertypeResult", "TypeAlignment", "pertype"]

# Loaded on first use: the options alone, which a command line needs for its help, import no torch.
_HOMES = {
    "Correlation": "outcome",
    "PertypeConfig": "config",
    "PertypeResult": "outcome",
    "TypeAlignment": "outcome",
    "pertype": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
