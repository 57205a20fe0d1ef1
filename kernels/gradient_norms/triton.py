"""norm_b = sqrt(sum_t |g_t|^2), p_bk = (mean_t g_t)' u_k in one read of g (_triton/segments.py).

(mean_t g_t)' U needs only the column sums, so the projections come from the same loads and cost K products
a column block instead of K a value. Triton rather than library calls: a norm and a matrix product would
read g twice.
Bytes: g once, U [d, K] once a run from L2, partial results 4 (1 + K) a 128 columns of a run.
"""

from __future__ import annotations

import torch
import triton

from .._triton.config import device_of, multiprocessors, pick
from .._triton.segments import NORM, norm_finish_kernel, norm_kernel, splits
from ..dispatch import register


def _cuda(g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None) -> str | None:
    fits = g.is_cuda and g.dtype is not torch.float64 and cu_seqlens.numel() > 1
    return "one read of ragged rows, projections from the same loads" if fits else None


@register("gradient_norms", "triton", supports=_cuda)
def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """fp32 sums within a part of a sample, fp64 over the parts in a fixed order; U is used in fp32.

    A g whose rows are not contiguous is copied. cu_seqlens is read on the device only.
    """
    T, d = g.shape
    B = cu_seqlens.numel() - 1
    g = g if g.stride(1) == 1 else g.contiguous()
    u = g.new_zeros((d, 0), dtype=torch.float32) if U is None else U.detach().float().contiguous()
    K = u.shape[1]
    config = pick(NORM, g.device)
    blocks = triton.cdiv(d, int(config.blocks["BD"]))
    cuts = splits(B, blocks, T, multiprocessors(g.device))
    parts = cuts * blocks
    squares = torch.empty(B * parts, dtype=torch.float32, device=g.device)
    proj = torch.empty(max(1, B * parts * K), dtype=torch.float32, device=g.device)
    norms = torch.empty(B, dtype=torch.float64, device=g.device)
    out = torch.empty((B, K), dtype=torch.float64, device=g.device)
    ends = cu_seqlens.contiguous()
    with device_of(g):
        norm_kernel[(blocks, cuts, B)](g, ends, u, squares, proj, d, g.stride(0), cuts, K, **config.launch)
        norm_finish_kernel[(B, max(1, triton.cdiv(K, 32)))](
            squares, proj, ends, norms, out, parts, K, BP=32, BK=32, num_warps=4
        )
    return norms, None if U is None else out
