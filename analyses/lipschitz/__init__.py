"""L_log: how much the decoder's log-likelihood can change with the adapter's output."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import lipschitz
    from .config import LipschitzConfig
    from .gradients import GradientPass, gradient_pass
    from .outcome import Group, LipschitzResult, Spread

__all__ = [
    "GradientPass",
    "Group",
    "LipschitzConfig",
    "LipschitzResult",
    "Spread",
    "gradient_pass",
    "lipschitz",
]

_HOMES = {
    "GradientPass": "gradients",
    "Group": "outcome",
    "LipschitzConfig": "config",
    "LipschitzResult": "outcome",
    "Spread": "outcome",
    "gradient_pass": "gradients",
    "lipschitz": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
