"""Mean over the positions that a mask keeps: `masked_mean`."""

from __future__ import annotations

import torch

from modegap.kernels.check import floating, once, same_device
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)

__all__ = ["masked_mean"]


def masked_mean(x: torch.Tensor, mask: torch.Tensor, *, checked: bool = True) -> torch.Tensor:
    """m_b = mean of x[b, t] over the t with mask[b, t].

    Args:
        x: [B, T, d], any floating dtype. Positions outside the mask are not read, so padding may hold
            anything.
        mask: bool [B, T].
        checked: look for empty mask rows, which makes the host wait for the device; a caller who knows that
            there are none says False.

    Returns:
        fp32 [B, d]; sums are taken in fp32 or better.

    Raises:
        ValueError: shapes, dtypes or devices do not agree, or a mask row is empty (the row is named; looked
            for once per tensor and version, because it waits for the GPU).
    """
    floating("x", x)
    if x.dim() != 3:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [B, T, d]")
    if mask.dtype is not torch.bool or mask.shape != x.shape[:2]:
        got = f"{mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"mask: got {got}, expected bool {tuple(x.shape[:2])}")
    same_device(x=x, mask=mask)
    if checked:
        once(mask, "rows", lambda: _check_rows(mask))
    result: torch.Tensor = run("masked_mean", __name__, x, mask)[0]
    return result


def _check_rows(mask: torch.Tensor) -> None:
    kept = mask.any(dim=1)
    if not bool(kept.all()):
        raise ValueError(f"mask: row {int(torch.nonzero(~kept)[0])} keeps no position, so it has no mean")
