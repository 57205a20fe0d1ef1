"""Linear probes of labels along the hook points, and how much of them the decoder retains."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ProbeConfig
    from .grid import label_classes, label_names, pipeline_order, probe
    from .outcome import Cell, ProbeResult, Retention

__all__ = [
    "Cell",
    "ProbeConfig",
    "ProbeResult",
    "Retention",
    "label_classes",
    "label_names",
    "pipeline_order",
    "probe",
]

# Loaded on first use: the options alone, which a command line needs for its help, import no torch.
_HOMES = {
    "Cell": "outcome",
    "ProbeConfig": "config",
    "ProbeResult": "outcome",
    "Retention": "outcome",
    "label_classes": "grid",
    "label_names": "grid",
    "pipeline_order": "grid",
    "probe": "grid",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
