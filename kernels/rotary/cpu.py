"""`rotary` as torch's own operations: on the host, and for what the CUDA kernel does not serve."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _plain(q: torch.Tensor, *_: torch.Tensor) -> str:
    return f"torch's operations on {q.device.type}"


@register("rotary", "cpu", supports=_plain)
def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiable by autograd, in cos and sin too."""
    return turned(q, cos, sin).to(q.dtype), turned(k, cos, sin).to(k.dtype)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, H, T, D] by the angles of cos and sin [B or 1, T, D], in the dtype that torch promotes them to."""
    half = x.shape[-1] // 2
    other = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos.unsqueeze(1) + other * sin.unsqueeze(1)
