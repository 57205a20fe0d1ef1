"""The oracle of `absmax`: torch's reduction, which lets NaN through."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "torch reduction"


@register("absmax", "reference", supports=_always)
def absmax(x: torch.Tensor) -> torch.Tensor:
    """max |x| by column in fp32 (fp64 for fp64)."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    if x.shape[0] == 0:
        return torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    return x.abs().amax(0).to(dtype)
