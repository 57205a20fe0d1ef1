"""Quadratic forms along given directions: `rayleigh`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, matrix, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["rayleigh"]


def rayleigh(U: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """r_k = u_k' S u_k.

    Args:
        U: [d, K] directions as columns; any floating dtype, need not be orthonormal or of unit length.
        S: [d, d], any floating dtype.

    Returns:
        fp64 [K] on U's device.

    The product runs in fp64 on every device, by the library: on a GPU its GEMM is within its goal at d = 4096.
    Flops: 2 d^2 K. Memory beyond the arguments: d x 512 fp64 (host: 1024 x d, and fp64 copies of narrower arguments).

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    matrix("U", U)
    floating("U", U)
    matrix("S", S, rows=U.shape[0], width=U.shape[0])
    floating("S", S)
    same_device(U=U, S=S)
    result: torch.Tensor = run("rayleigh", __name__, U, S)[0]
    return result
