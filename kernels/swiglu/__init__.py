"""The gated activation of a decoder's MLP: `swiglu`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["swiglu"]


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up with silu(x) = x / (1 + exp(-x)) (Shazeer 2020, arXiv:2002.05202).

    Args:
        gate: [..., d], any floating dtype; differentiable.
        up: [..., d] of the same shape and dtype; differentiable.

    Returns:
        A new tensor of their shape and dtype. The CUDA path computes in fp32 and rounds once; the host path is
        torch's two operations, which round twice.

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    floating("gate", gate)
    if up.shape != gate.shape or up.dtype is not gate.dtype:
        got = f"{up.dtype} {tuple(up.shape)}"
        raise ValueError(f"up: got {got}, expected gate's {gate.dtype} {tuple(gate.shape)}")
    same_device(gate=gate, up=up)
    result: torch.Tensor = run("swiglu", __name__, gate, up)[0]
    return result
