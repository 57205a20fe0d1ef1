"""The public functions that join layers: the built-in lab lives above the engine that loads models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from modegap.engine.cluster import Cluster
    from modegap.engine.datasets import Dataset, Sample
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


def dataset(spec: str | Path | Sequence[Sample], **options: Any) -> Dataset:
    """A data set by name, id or path.

    Args:
        spec: a published one (`librispeech`, `cremad`, `esc50`, `voxceleb1`, `coco`, `gqa`, with root=),
            `hf:org/name`, `store:PATH` for the texts of a store, a folder with a CSV or JSONL file, such a file, a
            text file, a list of samples, or the built-in `lab` (options split, size, seed);
            `modegap.engine.datasets.dataset` says what each form reads.
        options: root, split, limit, labels, text, media, skip_bad, ... as that function takes them.

    Raises:
        EngineError: nothing is there, or a file, column or option is wrong; the message names it.
    """
    skip_bad, workers = options.pop("skip_bad", False), options.pop("workers", 0)
    found = unsifted_dataset(spec, keep_missing=skip_bad, **options)
    if not skip_bad:
        return found
    from modegap.engine.datasets import sift

    return sift(found, workers=workers)[0]


def unsifted_dataset(
    spec: str | Path | Sequence[Sample], *, keep_missing: bool = False, **options: Any
) -> Dataset:
    """`dataset` with its bad samples still in it, for commands that list those they leave out.

    Raises:
        EngineError: as `dataset`.
    """
    from modegap.engine.datasets import limited, unsifted

    if not isinstance(spec, str) or spec.partition(":")[0] != LAB:
        return unsifted(spec, keep_missing=keep_missing, **options)
    from modegap.analyses.lab import LabDataset

    limit = options.pop("limit", None)
    options = {key: value for key, value in options.items() if value is not None}
    _, _, split = spec.partition(":")
    if split:
        options.setdefault("split", split)
    wrong = sorted(options.keys() - {"split", "size", "seed"})
    if wrong:
        raise ValueError(f"data set lab takes no option {wrong[0]!r}; it takes split, size, seed, limit")
    return limited(LabDataset(**options), limit)


def cluster(where: str, folder: str | Path | None = None) -> Cluster:
    """Workers for `reduce`, `align`, `distance`, `probe` and, by `.replicas`, for replays; a context manager.

    Args:
        where: `local`, `local:N`, a Dask scheduler's address, or a YAML file (docs/scaling.md).
        folder: where partial results are kept, on a file system that all workers mount: a run that was cut off goes
            on from them.

    Raises:
        ValueError: not one of these.
        EngineError: Dask is not installed, or nothing answers.
    """
    from modegap.engine.cluster import connect

    return connect(where, folder)


def open(path: str | Path, mode: Literal["r", "r+"] = "r") -> ActivationStore:
    """The activation store at `path`.

    Raises:
        StoreError: there is no store, it is damaged, or it was written by a newer modegap.
    """
    from modegap.stores import ActivationStore

    return ActivationStore.open(path, mode)
