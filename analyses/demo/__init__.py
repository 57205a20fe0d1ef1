"""The main job on the built-in lab: capture, stream, align, probe, ablate, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import DemoConfig

if TYPE_CHECKING:
    from .job import DemoResult, demo

__all__ = ["DemoConfig", "DemoResult", "demo"]


def __getattr__(name: str) -> Any:
    # The options are read before anything runs: torch is loaded with the job, not with them.
    if name in ("DemoResult", "demo"):
        from . import job

        return getattr(job, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
