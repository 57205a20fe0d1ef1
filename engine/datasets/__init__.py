"""Data sets: what is captured."""

from __future__ import annotations

from .base import Dataset, Label, Modality, Sample
from .batches import batches
from .decoding import attempted, decoded, default_workers
from .errors import MediaError
from .memory import ListDataset, TextView, as_text
from .open import dataset, unsifted
from .sifting import BadSample, bad_samples, sift
from .sizes import media_sizes
from .views import Subset, limited

__all__ = [
    "BadSample",
    "Dataset",
    "Label",
    "ListDataset",
    "MediaError",
    "Modality",
    "Sample",
    "Subset",
    "TextView",
    "as_text",
    "attempted",
    "bad_samples",
    "batches",
    "dataset",
    "decoded",
    "default_workers",
    "limited",
    "media_sizes",
    "sift",
    "unsifted",
]
