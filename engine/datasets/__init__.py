"""Data sets: what is captured."""

from __future__ import annotations

from .base import Dataset, Label, Modality, Sample
from .batches import batches
from .memory import ListDataset, TextView, as_text
from .open import dataset

__all__ = [
    "Dataset",
    "Label",
    "ListDataset",
    "Modality",
    "Sample",
    "TextView",
    "as_text",
    "batches",
    "dataset",
]
