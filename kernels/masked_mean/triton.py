"""m_b = mean of x[b, t] over the kept t in fp32: one read of the kept positions (_triton/segments.py).

Triton rather than library calls, which read x several times (a product by the mask, a sum, a division) or
also read the padding. Bytes: the kept rows of x once, 4 d a sample out.
"""

from __future__ import annotations

import torch
import triton

from .._triton.config import device_of, multiprocessors, pick
from .._triton.segments import MEAN, mean_kernel, splits
from ..dispatch import register


def _cuda(x: torch.Tensor, mask: torch.Tensor) -> str | None:
    fits = x.is_cuda and x.dtype is not torch.float64 and x.numel() > 0
    return "one read of the kept positions" if fits else None


@register("masked_mean", "triton", supports=_cuda)
def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """fp32 sums; an x whose last axis is not contiguous is copied. An empty mask row would give NaN."""
    B, T, d = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    config = pick(MEAN, x.device)
    blocks = triton.cdiv(d, int(config.blocks["BD"]))
    cuts = splits(B, blocks, B * T, multiprocessors(x.device))
    sums = torch.empty((B, cuts, d), dtype=torch.float32, device=x.device)
    counts = torch.empty((B, cuts), dtype=torch.int32, device=x.device)
    flags = mask.contiguous().view(torch.uint8)
    with device_of(x):
        mean_kernel[(blocks, cuts, B)](
            x,
            flags,
            sums,
            counts,
            T,
            d,
            x.stride(0),
            x.stride(1),
            cuts,
            DIVIDE=cuts == 1,
            **config.launch,
        )
    if cuts == 1:
        return sums[:, 0]
    return sums.sum(1) / counts.sum(1, keepdim=True)
