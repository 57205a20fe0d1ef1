"""Capture: hidden states from a running model into a store. Names, and torch, are loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capturer import Block, Capturer
    from .config import ExtractConfig
    from .extraction import extract
    from .ledger import read_retries, read_skipped
    from .parity import Parity, check_parity
    from .recorder import Recorder, record
    from .replayed import extract_replayed
    from .schedule import Batching
    from .statistics import extract_moments

_HOME = {
    "Batching": "schedule",
    "Block": "capturer",
    "Capturer": "capturer",
    "ExtractConfig": "config",
    "Parity": "parity",
    "Recorder": "recorder",
    "check_parity": "parity",
    "extract": "extraction",
    "extract_moments": "statistics",
    "extract_replayed": "replayed",
    "read_retries": "ledger",
    "read_skipped": "ledger",
    "record": "recorder",
}

__all__ = [
    "Batching",
    "Block",
    "Capturer",
    "ExtractConfig",
    "Parity",
    "Recorder",
    "check_parity",
    "extract",
    "extract_moments",
    "extract_replayed",
    "read_retries",
    "read_skipped",
    "record",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
