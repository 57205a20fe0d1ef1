"""Per-sample gradient norms and projections over ragged positions: `gradient_norms`."""

from __future__ import annotations

from itertools import pairwise

import torch

from modegap.kernels.check import floating, matrix, once, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["gradient_norms"]


def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """norm_b = sqrt(sum_t |g_t|^2) and p_bk = (mean_t g_t)' u_k over the positions t of sample b.

    Args:
        g: [T, d] gradients of all samples' positions, one sample after the other.
        cu_seqlens: int64 [B + 1]; sample b owns rows cu_seqlens[b] to cu_seqlens[b + 1].
        U: [d, K] directions, or None.

    Returns:
        (norms fp64 [B], projections fp64 [B, K] or None), signed.

    Bytes: g once.

    Raises:
        ValueError: cu_seqlens does not rise strictly from 0 to T (a sample without positions is named; looked
            for once per tensor and version, because it waits for the GPU), or shapes, dtypes or devices do not agree.
    """
    matrix("g", g)
    floating("g", g)
    if cu_seqlens.dtype is not torch.int64 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        got = f"{cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens: got {got}, expected int64 [B + 1]")
    once(cu_seqlens, g.shape[0], lambda: _check_bounds(cu_seqlens, g.shape[0]))
    same_device(g=g, cu_seqlens=cu_seqlens)
    if U is not None:
        matrix("U", U, rows=g.shape[1])
        floating("U", U)
        same_device(g=g, U=U)
    result: tuple[torch.Tensor, torch.Tensor | None] = run("gradient_norms", __name__, g, cu_seqlens, U)[0]
    return result


def _check_bounds(cu_seqlens: torch.Tensor, rows: int) -> None:
    bounds = cu_seqlens.tolist()  # one wait for the GPU instead of one for each check
    if bounds[0] != 0 or bounds[-1] != rows:
        raise ValueError(f"cu_seqlens: got ends {(bounds[0], bounds[-1])}, expected (0, {rows})")
    short = next((b for b, (start, stop) in enumerate(pairwise(bounds)) if stop <= start), None)
    if short is not None:
        raise ValueError(f"cu_seqlens: sample {short} has no positions; leave it out of the batch")
