"""The oracle of `ablate`: fp64, one product after the other."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("ablate", "reference", supports=_always)
def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """z - (z U) U', rounded once to z's dtype."""
    wide, basis = z.double(), U.double()
    return (wide - (wide @ basis) @ basis.T).to(z.dtype)
