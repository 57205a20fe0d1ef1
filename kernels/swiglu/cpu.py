"""`swiglu` as torch's own two operations: on the host, and for dtypes that the CUDA kernel does not serve."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _plain(gate: torch.Tensor, up: torch.Tensor) -> str:
    return f"torch's operations on {gate.device.type}"


@register("swiglu", "cpu", supports=_plain)
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Differentiable by autograd."""
    return torch.nn.functional.silu(gate) * up
