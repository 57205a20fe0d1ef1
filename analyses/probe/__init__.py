"""Linear probes of labels along the hook points, and how much of them the decoder retains."""

from __future__ import annotations

from .config import ProbeConfig
from .grid import probe
from .outcome import Cell, ProbeResult, Retention

__all__ = ["Cell", "ProbeConfig", "ProbeResult", "Retention", "probe"]
