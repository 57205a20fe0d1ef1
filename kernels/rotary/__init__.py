"""Rotary position embedding of queries and keys: `rotary`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["rotary"]


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x cos + rotate_half(x) sin for queries and keys, rotate_half((a, b)) = (-b, a) of the two halves of D.

    RoPE (Su et al. 2021, arXiv:2104.09864) in the layout of transformers.

    Args:
        q: [B, H, T, D], D even, any floating dtype; usually a transposed view of [B, T, H, D]. Differentiable.
        k: [B, H', T, D] of q's dtype; H' may be another number (grouped queries). Differentiable.
        cos: [B or 1, T, D], floating.
        sin: as cos.

    Returns:
        (q', k') in q's dtype, new tensors whose heads lie inside of positions in memory where those of q and k do.
        The CUDA path computes in fp32 and rounds once; the host path is torch's operations, which round each.

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    for name, x in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        floating(name, x)
    if q.dim() != 4 or q.shape[-1] % 2:
        raise ValueError(f"q: got shape {tuple(q.shape)}, expected [B, H, T, D] with an even D")
    B, _, T, D = q.shape
    if k.dim() != 4 or (k.shape[0], *k.shape[2:]) != (B, T, D) or k.dtype is not q.dtype:
        expected = f"[{B}, H, {T}, {D}] of {q.dtype}"
        raise ValueError(f"k: got shape {tuple(k.shape)} of {k.dtype}, expected {expected}")
    for name, x in (("cos", cos), ("sin", sin)):
        if x.shape not in ((B, T, D), (1, T, D)):
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected ({B}, {T}, {D}) or (1, {T}, {D})")
    same_device(q=q, k=k, cos=cos, sin=sin)
    result: tuple[torch.Tensor, torch.Tensor] = run("rotary", __name__, q, k, cos, sin)[0]
    return result
