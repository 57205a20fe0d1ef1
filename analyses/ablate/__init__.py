"""Causal ablation: the decoder's loss with modes projected out at a hook point."""

from __future__ import annotations

from .compute import ablate
from .config import AblateConfig
from .outcome import AblationResult, Condition, Draw

__all__ = ["AblateConfig", "AblationResult", "Condition", "Draw", "ablate"]
