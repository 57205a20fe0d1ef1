"""The oracle of `projection_energy`: fp64 product, squared and summed."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("projection_energy", "reference", supports=_always)
def projection_energy(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> None:
    """out += ((x U) ** 2).sum(0) in fp64."""
    out += (x.double() @ U.double()).square_().sum(0)
