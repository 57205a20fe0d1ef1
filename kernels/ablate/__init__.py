"""Removing a subspace from hidden states: `ablate`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, matrix, once, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["ablate"]

_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """z' = z - U U' z along the last axis: the component of z in span(U) removed.

    Args:
        z: [..., d] hidden states, any floating dtype; differentiable.
        U: [d, K] with orthonormal columns; K = 0 leaves z as it is.

    Returns:
        A new tensor with z's shape and dtype. Coefficients and the difference are formed in fp32 or better
        and rounded once, so what is left in the subspace is the rounding of z' (2e-4 of it in fp16).

    Raises:
        ValueError: z's last axis is not d, dtypes or devices do not agree, or U' U differs from the identity
            by more than U's own rounding allows (the difference is checked once per tensor and version).
    """
    matrix("U", U)
    floating("U", U)
    floating("z", z)
    if z.dim() < 1 or z.shape[-1] != U.shape[0]:
        raise ValueError(f"z: got shape {tuple(z.shape)}, expected [..., {U.shape[0]}]")
    same_device(z=z, U=U)
    once(U, "orthonormal", lambda: _check_orthonormal(U))
    result: torch.Tensor = run("ablate", __name__, z, U)[0]
    return result


def _check_orthonormal(U: torch.Tensor) -> None:
    with torch.no_grad():
        wide = U.double()
        gap = wide.T @ wide
        gap.diagonal().sub_(1.0)
        worst = float(gap.abs().amax()) if gap.numel() else 0.0
    if not worst <= _TOLERANCE[U.dtype]:
        raise ValueError(
            f"U: columns are not orthonormal, max |U'U - I| = {worst:.2g}, expected at most "
            f"{_TOLERANCE[U.dtype]:g}; orthonormalise them first (torch.linalg.qr)"
        )
