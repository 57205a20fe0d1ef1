"""Small real architectures with captured stores, and the published scripts' formulas rewritten."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from modegap.analyses.align import Modes, align
from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset, Sample, as_text
from modegap.engine.models import LoadedModel
from modegap.stores import ActivationStore

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "engine" / "tiny_models.py")))


class Case(NamedTuple):
    """A model, its samples, the stores of both laws and their modes."""

    loaded: LoadedModel
    samples: list[Sample]
    modal: ActivationStore
    text: ActivationStore
    modes: Modes


def make_case(folder: Path, family: str = "llava", count: int = 16) -> Case:
    build, samples = tiny.FAMILIES[family]
    loaded, batch = build(), samples(count)
    data = ListDataset(batch, "tiny")
    stores = []
    for name, point, of in (
        ("modal", "adapter_output", data),
        ("text", "text_embedding", as_text(data)),
    ):
        config = ExtractConfig(
            "given", "given", str(folder / f"{name}.zarr"), (point,), batch_size=4, store_dtype="float32"
        )
        stores.append(extract(config, model=loaded, data=of))
    # random weights have their text in the same place everywhere: the median of rho makes half the modes MS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows for 48 dimensions
        first = align(*stores, interval=None, top=20)
        threshold = float(np.median(first.rho[first.considered]))
        modes = align(*stores, interval=None, top=20, threshold=threshold)
    return Case(loaded, batch, *stores, modes)


def script_forward(loaded: LoadedModel, sample: Sample, fn: Any = None) -> tuple[Any, Any, Any]:
    """The published scripts' forward of one sample: (z that requires grad, shifted logits, shifted labels)."""
    inputs = loaded.collate([sample]).tensors
    kept = {}

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        kept["z"] = output.detach().float().requires_grad_(True)
        return kept["z"] if fn is None else fn(kept["z"])

    handle = loaded.model.get_submodule(loaded.structure.adapter).register_forward_hook(hook)
    try:
        logits = loaded.model(**inputs).logits.float()
    finally:
        handle.remove()
    return kept["z"], logits[:, :-1], inputs["input_ids"][:, 1:]


def script_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Their cross-entropy: every token of input_ids counts, placeholders too."""
    valid = labels >= 0
    picked = torch.log_softmax(logits, -1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return -(picked * valid).sum() / valid.sum()


def script_gradient(loaded: LoadedModel, sample: Sample) -> np.ndarray:
    """Their gradient of the mean log-probability with respect to z, [t, d]."""
    z, logits, labels = script_forward(loaded, sample)
    (g,) = torch.autograd.grad(-script_loss(logits, labels), z)
    return g.squeeze(0).numpy()
