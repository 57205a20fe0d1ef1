"""LoRA intervention: train the decoder for a label, and see what becomes accessible and what else moves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compute import lora
    from .config import LoraConfig
    from .outcome import Arm, Asked, Change, LoraResult

__all__ = ["Arm", "Asked", "Change", "LoraConfig", "LoraResult", "lora"]

_HOMES = {
    "Arm": "outcome",
    "Asked": "outcome",
    "Change": "outcome",
    "LoraConfig": "config",
    "LoraResult": "outcome",
    "lora": "compute",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
