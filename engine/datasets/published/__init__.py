"""Loaders of published data sets from the folder layouts they are published in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class Loader:
    """A published data set: where its loader is, and what else people call it."""

    module: str
    function: str
    aliases: tuple[str, ...]
    layout: str

    def open(self) -> Callable[..., Any]:
        """The loader, imported now; takes the root folder first."""
        found: Callable[..., Any] = getattr(import_module(f".{self.module}", __name__), self.function)
        return found


LOADERS = {
    "librispeech": Loader("librispeech", "librispeech", (), "LibriSpeech/<split>/<speaker>/<chapter>/"),
    "cremad": Loader("cremad", "cremad", ("crema-d", "crema_d"), "AudioWAV/*.wav"),
    "esc50": Loader("esc50", "esc50", ("esc-50", "esc_50"), "meta/esc50.csv and audio/"),
    "voxceleb1": Loader("voxceleb", "voxceleb1", ("voxceleb", "vox1"), "wav/<speaker>/<video>/*.wav"),
    "coco": Loader("coco", "coco", ("mscoco", "ms-coco"), "val2017/ and annotations/"),
    "gqa": Loader("gqa", "gqa", (), "val_balanced_questions.json and images/"),
}


def find_loader(name: str) -> str | None:
    """The data set's own name for one of its names, in any case; None for anything else."""
    low = name.lower()
    return next((key for key, one in LOADERS.items() if low == key or low in one.aliases), None)
