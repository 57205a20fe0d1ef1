"""Host path of `covariance_update`: tiles of the triangle, in fp32 or fp64 (host.py says how and why)."""

from __future__ import annotations

import torch

from modegap.kernels import host
from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace


def _host(rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if rows.device.type != "cpu":
        return None
    if rows.dtype is torch.float64:
        return "fp64 BLAS tiles of the triangle"
    if rows.dtype is not torch.float32:
        return None
    refusal = host.onednn_refusal()
    return f"BLAS tiles of the triangle: {refusal}" if refusal else "oneDNN AVX-512 tiles of the triangle"


@register("covariance_update", "cpu", supports=_host)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """fp64 rows as they are; fp32 rows in packed blocks of at most `CHAIN_ROWS`."""
    if rows.dtype is torch.float64:
        host.add_wide(rows, rows, gram, lower=True)
        return
    scratch = workspace or Workspace()
    for lo in range(0, rows.shape[0], host.CHAIN_ROWS):
        pieces = host.pack(rows[lo : lo + host.CHAIN_ROWS], scratch, "covariance.packed")
        host.add_products(pieces, pieces, gram, lower=True)
