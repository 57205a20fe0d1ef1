"""Prismatic as one module: vision towers, projector, Llama."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modegap.engine.errors import EngineError
from modegap.engine.models.composite import Composite, CompositeConfig

from .vision import PatchFeatures


class Prismatic(Composite):
    """`q(y | image, prompt)`: patch features of one or more towers, a projector, and a language model.

    Args:
        towers: the vision towers; their features are concatenated patch by patch.
        projector: [.., d_vision] to [.., d].
        language_model: a transformers `LlamaForCausalLM`.
        config: see there.
    """

    def __init__(
        self,
        towers: Sequence[PatchFeatures],
        projector: nn.Module,
        language_model: nn.Module,
        config: CompositeConfig,
    ) -> None:
        """Takes the parts as they are."""
        super().__init__(language_model, config)
        self.vision_backbone = nn.ModuleList(towers)
        self.projector = projector

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The language model's output.

        Args:
            input_ids: [B, T], a placeholder a patch.
            attention_mask: [B, T].
            position_ids: [B, T].
            pixel_values: [B, towers * 3, H, W], each tower's normalised image; None for text.
            options: passed on to the language model.
        """
        rows = None
        if pixel_values is not None:
            images = pixel_values.chunk(len(self.vision_backbone), dim=1)
            features = [tower(image) for tower, image in zip(self.vision_backbone, images, strict=True)]
            rows = self.projector(torch.cat(features, dim=2)).flatten(0, 1)
        return self.decode(
            input_ids, rows, attention_mask=attention_mask, position_ids=position_ids, **options
        )


def projector(weights: Mapping[str, torch.Tensor], arch: str) -> nn.Module:
    """The projector with its weights: `linear`, `gelu-mlp` or `fused-gelu-mlp`, `no-align+` or not in front.

    The published names are `projector.weight` for a linear one and `projector.<index>.weight` for an MLP, whose
    layers are linear, GELU, linear (GELU, linear if fused).

    Raises:
        EngineError: weights that this kind of projector does not have.
    """
    plain = {name.removeprefix("projector."): value for name, value in weights.items()}
    kind = arch.removeprefix("no-align+")
    count = {"linear": 1, "gelu-mlp": 2, "fused-gelu-mlp": 3}.get(kind)
    if count is None:
        raise EngineError(f"got a projector of kind {arch!r}; expected linear, gelu-mlp or fused-gelu-mlp")
    names = [""] if kind == "linear" else [f"{2 * i}." for i in range(count)]
    expected = {name + part for name in names for part in ("weight", "bias")}
    if plain.keys() != expected:
        raise EngineError(
            f"the checkpoint's projector holds {sorted(plain)}, one of kind {kind} has {sorted(expected)}; "
            "use the published checkpoint"
        )
    layers: list[nn.Module] = []
    for name in names:
        weight = plain[f"{name}weight"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=weight.dtype)
        layers += [linear, nn.GELU()]
    made: nn.Module = layers[0] if kind == "linear" else nn.Sequential(*layers[:-1])
    made.load_state_dict(plain, assign=True)
    return made
