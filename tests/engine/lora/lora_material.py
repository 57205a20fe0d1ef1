"""Small real architectures whose stored rows say a sample's class, and their sources."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.models import LoadedModel
from modegap.engine.replay import open_source
from modegap.engine.replay.source import ReplaySource
from modegap.stores import ActivationStore

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
QUESTION = "Describe this photo"
CLASSES = ("cat", "dog")


def samples(family: str, count: int) -> list[Sample]:
    """Samples whose media tell their class plainly; texts do not; every fourth of a group."""
    rng = np.random.default_rng(3)
    found = []
    for i, plain in enumerate(tiny.FAMILIES[family][1](count)):
        kind = int(rng.integers(2))
        media: Any
        if family == "llava":
            pixels = rng.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
            pixels[..., 2 if kind else 0] += 180
            media = Image.fromarray(pixels)
        else:
            time = np.arange(3200 + 1600 * (i % 4)) / 16000
            noise = 0.02 * rng.standard_normal(len(time))
            media = ((np.sin(2 * np.pi * (400 + 3000 * kind) * time) + noise).astype(np.float32), 16000)
        row = {"kind": CLASSES[kind], "hue": "red" if rng.random() < 0.5 else "blue", "site": f"s{i // 4}"}
        found.append(Sample(plain.id, plain.text, media, labels=row))
    return found


def captured(folder: Path, family: str, count: int, **options: Any) -> tuple[LoadedModel, ActivationStore]:
    loaded = tiny.FAMILIES[family][0]()
    config = ExtractConfig(
        "given",
        "given",
        str(folder / f"{family}.zarr"),
        options.pop("points", ("adapter_output",)),
        **{"batch_size": 8, "store_dtype": "float32", **options},
    )
    return loaded, extract(config, model=loaded, data=ListDataset(samples(family, count), "tiny"))


def question_source(loaded: LoadedModel, store: ActivationStore) -> ReplaySource:
    return open_source(loaded, store, target_label="kind", prompt=QUESTION)
