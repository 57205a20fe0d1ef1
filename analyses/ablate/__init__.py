"""Causal ablation: the decoder's loss with modes projected out at a hook point."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import ablate
    from .config import AblateConfig
    from .outcome import AblationResult, Condition, Draw
    from .sweep import Sweep

__all__ = ["AblateConfig", "AblationResult", "Condition", "Draw", "Sweep", "ablate"]

# Loaded on first use: the options alone, which a command line needs for its help, import no torch.
_HOMES = {
    "AblateConfig": "config",
    "AblationResult": "outcome",
    "Condition": "outcome",
    "Draw": "outcome",
    "Sweep": "sweep",
    "ablate": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
