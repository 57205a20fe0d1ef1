"""The public functions that join layers: the built-in lab lives above the engine that loads models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset
    from modegap.engine.models import LoadedModel
    from modegap.stores import ActivationStore

LAB = "lab"


def load(model: str | Path, **options: Any) -> LoadedModel:
    """A model with its processor and resolved hook points; unpacks as `model, processor`.

    Args:
        model: a Hugging Face id, a local folder, or the built-in `lab:plain`, `lab:aligned`, `lab:text`.
        options: passed on to `from_pretrained`: dtype, device_map, revision, trust_remote_code.

    Raises:
        EngineError: the id is unknown or gated, or cannot be reached; the message names the remedy.
        ValueError: an unknown lab variant.
    """
    name = str(model)
    if name.partition(":")[0] == LAB:
        return _load_lab(name, **options)
    from modegap.engine.models import load as load_pretrained

    return load_pretrained(name, **options)


def _load_lab(name: str, **options: Any) -> LoadedModel:
    from modegap.analyses import lab
    from modegap.engine.models import adopt

    _, _, variant = name.partition(":")
    dtype, device, points = (options.pop(key, None) for key in ("dtype", "device_map", "points"))
    options = {key: value for key, value in options.items() if value}
    if options:
        raise ValueError(f"the lab models take only dtype, device_map and points, got {sorted(options)}")
    variant = variant or lab.VARIANTS[-1]
    parts: tuple[Any, Any] = (
        lab.load_text(dtype=dtype, device=device)
        if variant == "text"
        else lab.load(cast("lab.Variant", variant), dtype=dtype, device=device)
    )
    return adopt(*parts, name=f"{LAB}:{variant}", points=points, revision=lab.revision())


def dataset(spec: str | Path, **options: Any) -> Dataset:
    """A data set: `lab` (options split, size, seed), a folder with a CSV or JSONL file, or a text file.

    Raises:
        EngineError: nothing is there, or a file or column is missing; the message names it.
    """
    if str(spec).partition(":")[0] == LAB:
        from modegap.analyses.lab import LabDataset

        _, _, split = str(spec).partition(":")
        if split:
            options["split"] = split
        return LabDataset(**options)
    from modegap.engine.datasets import dataset as read_dataset

    return read_dataset(spec, **options)


def open(path: str | Path, mode: Literal["r", "r+"] = "r") -> ActivationStore:
    """The activation store at `path`.

    Raises:
        StoreError: there is no store, it is damaged, or it was written by a newer modegap.
    """
    from modegap.stores import ActivationStore

    return ActivationStore.open(path, mode)
