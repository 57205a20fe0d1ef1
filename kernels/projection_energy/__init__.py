"""Energy of rows along given directions: `projection_energy`."""

from __future__ import annotations

import torch

from modegap.kernels.check import float64, floating, matrix, same_device
from modegap.kernels.dispatch import KernelPath, run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["projection_energy"]


def projection_energy(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> KernelPath:
    """out[k] += sum_i (x_i' u_k)^2.

    Args:
        x: [n, d] rows, staged by `stage` where their mean matters; fp64 rows are multiplied in fp64.
        U: [d, K] directions as columns; need not be orthonormal.
        out: fp64 [K]; accumulates.

    Returns:
        The path that ran.

    Flops: 2 n d K. The n x K projections are never held whole.

    Raises:
        ValueError: shapes, dtypes or devices do not agree.
    """
    matrix("x", x)
    floating("x", x)
    matrix("U", U, rows=x.shape[1])
    floating("U", U)
    if tuple(out.shape) != (U.shape[1],):
        raise ValueError(f"out: got shape {tuple(out.shape)}, expected ({U.shape[1]},)")
    float64("out", out)
    same_device(x=x, U=U, out=out)
    return run("projection_energy", __name__, x, U, out)[1]
