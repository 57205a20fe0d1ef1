"""Data sets: what is captured."""

from __future__ import annotations

from .base import Dataset, Label, Modality, Sample
from .batches import batches
from .decoding import attempted, decoded, default_workers
from .errors import MediaError
from .memory import ListDataset, TextView, as_text
from .open import dataset

__all__ = [
    "Dataset",
    "Label",
    "ListDataset",
    "MediaError",
    "Modality",
    "Sample",
    "TextView",
    "as_text",
    "attempted",
    "batches",
    "dataset",
    "decoded",
    "default_workers",
]
