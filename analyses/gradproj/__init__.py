"""g_k: how sensitive the decoder is along each mode."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import gradients, gradproj
    from .config import GradprojConfig
    from .outcome import Contrast, GradprojResult

__all__ = ["Contrast", "GradprojConfig", "GradprojResult", "gradients", "gradproj"]

_HOMES = {
    "Contrast": "outcome",
    "GradprojConfig": "config",
    "GradprojResult": "outcome",
    "gradients": "compute",
    "gradproj": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
