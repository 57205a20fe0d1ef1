"""LoRA of a decoder, trained on stored rows by replay: no media and no encoder pass. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapter, LoraSpec, adapted, check_modules, fresh
    from .batches import epoch_batches
    from .config import Epoch, TrainConfig, Training
    from .trainer import train

_HOME = {
    "Adapter": "adapters",
    "Epoch": "config",
    "LoraSpec": "adapters",
    "TrainConfig": "config",
    "Training": "config",
    "adapted": "adapters",
    "check_modules": "adapters",
    "epoch_batches": "batches",
    "fresh": "adapters",
    "train": "trainer",
}

__all__ = [
    "Adapter",
    "Epoch",
    "LoraSpec",
    "TrainConfig",
    "Training",
    "adapted",
    "check_modules",
    "epoch_batches",
    "fresh",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
