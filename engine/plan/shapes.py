"""Widths and rows of hook points from a model's structure, without a forward."""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from modegap.engine.capture.job import Shape
from modegap.engine.capture.lengths import StreamRule
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint
from modegap.engine.models.structure import output_width


def estimated_shape(loaded: LoadedModel, point: HookPoint) -> Shape:
    """Width and row rule of a point as its module's weights suggest them.

    Points of the decoder and the adapter are exact. An adapter that merges n encoder rows into one reads rows
    n times as wide as the encoder's: so many encoder rows are assumed for each placeholder, which leaves out
    a class token, and positions that the model drops before the adapter.
    """
    width = loaded.hidden_size or 1
    if point.stream in ("llm", "text"):
        return width, None
    if point.stream == "adapter":
        return width, StreamRule("placeholders", Fraction(1))
    module = loaded.model.get_submodule(point.module_path)
    found = (input_width(module) if point.pick == "input" else output_width(module)) or width
    merged = 1
    if point.name == "encoder_output" and loaded.structure is not None and loaded.structure.encoder:
        own = output_width(loaded.model.get_submodule(loaded.structure.encoder))
        if own and found > own and found % own == 0:
            found, merged = own, found // own
    return found, StreamRule("placeholders", Fraction(merged))


def input_width(module: nn.Module) -> int | None:
    """Width of the rows a module takes: that of its first matrix; None when it has none."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if weight is not None and weight.dim() == 2 and not isinstance(part, nn.Embedding):
            # GPT-2's Conv1D stores [in, out], and says so with `nf`
            return int(weight.shape[0] if hasattr(part, "nf") else weight.shape[1])
    return None
