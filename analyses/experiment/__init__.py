"""A whole experiment as one YAML file: models x data sets x analyses, resumed by content."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cells import Cell, cells_of
    from .config import DataSpec, Experiment, ModelSpec, load_experiment, shipped
    from .outcome import CellOutcome, ExperimentResult
    from .runner import examples, run, studies_of

__all__ = [
    "Cell",
    "CellOutcome",
    "DataSpec",
    "Experiment",
    "ExperimentResult",
    "ModelSpec",
    "cells_of",
    "examples",
    "load_experiment",
    "run",
    "shipped",
    "studies_of",
]

_HOMES = {
    "Cell": "cells",
    "CellOutcome": "outcome",
    "DataSpec": "config",
    "Experiment": "config",
    "ExperimentResult": "outcome",
    "ModelSpec": "config",
    "cells_of": "cells",
    "examples": "runner",
    "load_experiment": "config",
    "run": "runner",
    "shipped": "config",
    "studies_of": "runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
