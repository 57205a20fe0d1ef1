"""The oracle of `gradient_norms`: one sample at a time in fp64."""

from __future__ import annotations

from itertools import pairwise

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("gradient_norms", "reference", supports=_always)
def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Frobenius norm of each sample's rows, and the projections of their mean."""
    ends = cu_seqlens.tolist()
    samples = [g[lo:hi].double() for lo, hi in pairwise(ends)]
    empty = torch.zeros((0, g.shape[1]), dtype=torch.float64, device=g.device)
    norms = torch.stack([s.square().sum().sqrt() for s in samples]) if samples else empty.sum(1)
    if U is None:
        return norms, None
    means = torch.stack([s.mean(0) for s in samples]) if samples else empty
    return norms, means @ U.double()
