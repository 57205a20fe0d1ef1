"""Eigendecomposition of a symmetric matrix where it lies: `eigh`."""

from __future__ import annotations

import torch

from ..check import float64
from ..dispatch import run
from . import reference  # noqa: F401  (it registers itself)

__all__ = ["eigh"]


def eigh(S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S = V diag(w) V', read from S's lower triangle.

    Args:
        S: fp64 [d, d]; what stands above the diagonal is not read, so a Gram matrix needs no mirroring.

    Returns:
        (w fp64 [d] ascending, V fp64 [d, d] with eigenvectors as columns), on S's device.

    Raises:
        ValueError: S is not a square fp64 matrix.
    """
    float64("S", S)
    if S.dim() != 2 or S.shape[0] != S.shape[1]:
        raise ValueError(f"S: got shape {tuple(S.shape)}, expected [d, d]")
    result: tuple[torch.Tensor, torch.Tensor] = run("eigh", __name__, S)[0]
    return result
