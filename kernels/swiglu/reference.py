"""The oracle of `swiglu`: fp64, rounded once."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("swiglu", "reference", supports=_always)
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Differentiable by autograd."""
    wide = gate.double()
    return (wide * torch.sigmoid(wide) * up.double()).to(gate.dtype)
