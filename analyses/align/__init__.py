"""Mode alignment: which directions of the modal law the text law varies along."""

from __future__ import annotations

from .compute import align
from .config import AlignConfig
from .modes import Modes

__all__ = ["AlignConfig", "Modes", "align"]
