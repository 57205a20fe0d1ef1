"""Models: loading, hook points by structure, prompts, edits and scores. Importing this imports torch."""

from __future__ import annotations

from .collate import Collator, Inputs
from .edit import edit
from .loaded import LoadedModel
from .loading import adopt, load
from .points import HookPoint, describe
from .score import target_nll

__all__ = [
    "Collator",
    "HookPoint",
    "Inputs",
    "LoadedModel",
    "adopt",
    "describe",
    "edit",
    "load",
    "target_nll",
]
