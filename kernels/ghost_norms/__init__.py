"""Per-sample norms of linear and LoRA weight gradients that are never formed: `ghost_norms`, `lora_norms`."""

from __future__ import annotations

import torch

from ..check import floating, matrix, same_device
from ..dispatch import run
from ..host import linear, needs_grad
from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["ghost_norms", "lora_norms"]


def ghost_norms(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """norm_b = |A_b' G_b|_F, the norm of sample b's gradient of a linear weight.

    By the smaller of two ways: sum_ts (a_t' a_s)(g_t' g_s), T^2 (d + p) flops, which never forms the d x p
    gradient (Goodfellow, arXiv:1510.01799; sequences: Li et al., arXiv:2110.05679), or its entries by tiles,
    2 T d p flops, when T > 2 d p / (d + p).

    Args:
        a: [B, T, d] inputs of the layer.
        g: [B, T, p] gradients with respect to its outputs; padding must be zero in one of the two.

    Returns:
        fp64 [B].

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    floating("a", a)
    if a.dim() != 3 or g.dim() != 3 or a.shape[:2] != g.shape[:2]:
        raise ValueError(
            f"a and g: got {tuple(a.shape)} and {tuple(g.shape)}, expected [B, T, d] and [B, T, p]"
        )
    if a.dtype != g.dtype:
        raise ValueError(f"a and g: got {a.dtype} and {g.dtype}, expected one dtype")
    same_device(a=a, g=g)
    result: torch.Tensor = run("ghost_norms", __name__, a, g)[0]
    return result


def lora_norms(
    x: torch.Tensor, g: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-sample gradient norms of the two factors of y = W x + scaling * up down x.

    The gradient of `down` is scaling (G up)' X and that of `up` is scaling G' (X down').

    Args:
        x: [B, T, d] inputs of the layer.
        g: [B, T, p] gradients with respect to y; rows of padding must be zero.
        down: [r, d], LoRA's A.
        up: [p, r], LoRA's B.
        scaling: alpha / r, the factor before the product.

    Returns:
        (norms of down's gradient fp64 [B], norms of up's gradient fp64 [B]).

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    matrix("down", down, width=x.shape[-1])
    matrix("up", up, rows=g.shape[-1], width=down.shape[0])
    same_device(x=x, g=g, down=down, up=up)
    factor = abs(scaling)
    found = cpu.lora_norms(x, g, down, up)
    if found is not None:
        return factor * found[0], factor * found[1]
    if x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16):
        x, g = (
            x.float(),
            g.float(),
        )  # the host has no fast product in these; they would be upcast later anyway
    return (
        factor * ghost_norms(x, _low_rank(g, up.T)),
        factor * ghost_norms(_low_rank(x, down), g),
    )


def _low_rank(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x weight' along the last axis."""
    if x.device.type != "cpu" or needs_grad(x, weight):
        return x @ weight.T.to(x.dtype)
    return linear(x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], len(weight))
