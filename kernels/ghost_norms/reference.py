"""The oracle of `ghost_norms`: each sample's gradient formed in fp64."""

from __future__ import annotations

import torch

from ..dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("ghost_norms", "reference", supports=_always)
def ghost_norms(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """|A_b' G_b|_F one sample at a time."""
    out = torch.empty(len(a), dtype=torch.float64, device=a.device)
    for b in range(len(a)):
        out[b] = torch.linalg.matrix_norm(a[b].double().T @ g[b].double())
    return out
