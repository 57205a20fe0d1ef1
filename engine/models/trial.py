"""One generated sample through a model: what passes its hook points, and whether they are what they claim."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modegap.engine.datasets.base import Modality, Sample
from modegap.engine.errors import EngineError

from .collate import TEXT, Inputs
from .hooks import attached, evaluating
from .loaded import LoadedModel
from .points import HookPoint


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `passed` is None where it does not apply."""

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What the sample showed.

    Attributes:
        shapes: hook point name to the shape of its tensor; points of the text's own embedding left out.
        checks: see there.
    """

    shapes: dict[str, tuple[int, ...]]
    checks: tuple[Check, ...]


def example(modality: Modality) -> Sample:
    """A generated image (96 x 64), sound (one second) or sentence, the same every time."""
    rng = np.random.default_rng(0)
    media: Any = None
    if modality == "image":
        from PIL import Image

        media = Image.fromarray(rng.integers(0, 256, size=(64, 96, 3), dtype=np.uint8))
    elif modality == "audio":
        media = (0.1 * rng.standard_normal(16000).astype(np.float32), 16000)
    return Sample("example", "A red bike.", media)


@torch.no_grad()
def trial(loaded: LoadedModel, inputs: Inputs | None = None) -> Trial:
    """Runs a batch (one generated sample unless given) and checks the hook points against plain torch hooks.

    Raises:
        EngineError: the model does not take the sample.
    """
    inputs = loaded.collate([example(loaded.modality)]) if inputs is None else inputs
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        return lambda tensor: seen.update({name: tensor})

    points = [point for point in loaded.points.values() if point.stream != "text"]
    with evaluating(loaded.model), attached(loaded.model, [(point, keep(point.name)) for point in points]):
        output = loaded.forward(inputs, output_hidden_states=True)
        checks = [_hidden(loaded, output, seen), *_adapter(loaded, inputs, points, seen)]
    shapes = {point.name: tuple(seen[point.name].shape) for point in points if point.name in seen}
    silent = [point.name for point in points if point.name not in seen]
    checks.insert(
        0, Check("every hook point is passed", not silent, ", ".join(silent) or f"{len(points)} points")
    )
    return Trial(shapes, tuple(checks))


def _hidden(loaded: LoadedModel, output: Any, seen: dict[str, torch.Tensor]) -> Check:
    name = "llm_hidden_<k> is transformers' hidden_states[k]"
    states = getattr(output, "hidden_states", None)
    ours = [seen.get(f"llm_hidden_{k}") for k in range(len(states or ()))]
    if not states or any(tensor is None for tensor in ours):
        return Check(name, None, "the model returns no hidden_states")
    wrong = [k for k, (a, b) in enumerate(zip(ours, states, strict=True)) if a is None or not _close(a, b)]
    return Check(name, not wrong, f"{len(states)} states" if not wrong else f"differ at {wrong}")


def _adapter(
    loaded: LoadedModel, inputs: Inputs, points: list[HookPoint], seen: dict[str, torch.Tensor]
) -> list[Check]:
    read = "adapter_output is what the decoder reads at the placeholders"
    entry, rows = loaded.replay, seen.get("adapter_output")
    if entry is None or rows is None or loaded.structure is None:
        return [Check(read, None, "no media" if loaded.modality == "text" else "no adapter")]
    media = inputs.modality > TEXT
    first = seen.get("llm_hidden_0")
    stream = next(point.stream for point in points if point.name == "adapter_output")
    if first is None or stream != "adapter":
        return [Check(read, None, entry.unsupported or "the decoder's first layer was not seen")]
    flat = rows.reshape(-1, rows.shape[-1])
    if rows.dim() == 3 and len(rows) == len(inputs) and len(flat) != int(media.sum()):
        # encoders of a fixed length: a sample's own rows come first
        flat = torch.cat([row[:count] for row, count in zip(rows, inputs.media_counts, strict=True)])
    there = first[media.to(first.device)].to(flat.device)
    if flat.shape != there.shape:
        return [Check(read, False, f"{len(flat)} rows for {len(there)} placeholders")]
    scale = there.float().norm() / flat.float().norm().clamp(min=1e-12)
    same = _close(flat.float() * scale, there.float())
    checks = [Check(read, same, f"{len(flat)} rows, {scale:.4g} times as large there")]
    return [*checks, _replay(loaded, inputs, flat, seen)]


def _replay(loaded: LoadedModel, inputs: Inputs, rows: torch.Tensor, seen: dict[str, torch.Tensor]) -> Check:
    name = "replay of adapter_output is the whole forward"
    entry = loaded.replay
    if entry is None or entry.unsupported is not None:
        return Check(name, None, "not supported: " + (entry.unsupported or "" if entry else "no decoder"))
    final = seen["llm_final"]
    ids = inputs.tensors["input_ids"]
    options = {
        "attention_mask": inputs.tensors.get("attention_mask"),
        "position_ids": (inputs.attention.long().cumsum(dim=1) - 1).clamp(min=0),
    }
    decoder = loaded.model.get_submodule(entry.decoder)
    with suppress(EngineError):
        again = decoder(inputs_embeds=entry.inputs_embeds(loaded, ids, rows), **options).last_hidden_state
        same = _close(again[inputs.attention], final[inputs.attention])
        return Check(name, same, "equal" if same else f"differs by {float((again - final).abs().max()):.2g}")
    return Check(name, False, "the rows do not fit the placeholders")


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal within a few roundings of the dtype, row by row."""
    if a.shape != b.shape:
        return False
    steps = 64 * torch.finfo(a.dtype).eps
    gap = (a.float() - b.float().to(a.device)).norm(dim=-1)
    return bool((gap <= steps * b.float().norm(dim=-1).to(a.device) + 1e-30).all())
