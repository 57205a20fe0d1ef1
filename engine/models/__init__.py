"""Models: loading, hook points by structure, prompts, edits and scores. Importing this imports torch."""

from __future__ import annotations

from .collate import Collator, Inputs
from .edit import edit
from .loaded import LoadedModel
from .loading import SYSTEMS, adopt, load
from .points import HookPoint, describe
from .replay import ReplayEntry
from .score import target_nll
from .skeleton import skeleton
from .tree import Branch, outline
from .trial import Check, Trial, trial

__all__ = [
    "SYSTEMS",
    "Branch",
    "Check",
    "Collator",
    "HookPoint",
    "Inputs",
    "LoadedModel",
    "ReplayEntry",
    "Trial",
    "adopt",
    "describe",
    "edit",
    "load",
    "outline",
    "skeleton",
    "target_nll",
    "trial",
]
