"""Largest magnitude in each channel: `absmax`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, matrix
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["absmax"]


def absmax(x: torch.Tensor) -> torch.Tensor:
    """a_j = max_i |x_ij|, inf or NaN where channel j holds one.

    Args:
        x: [n, d] rows, any floating dtype.

    Returns:
        [d] in fp32 (fp64 for fp64 rows) on x's device; zeros for n = 0. Exact: no value is rounded.

    Raises:
        ValueError: x is not a floating matrix.
    """
    matrix("x", x)
    floating("x", x)
    result: torch.Tensor = run("absmax", __name__, x)[0]
    return result
