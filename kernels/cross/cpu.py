"""Host path of `cross_update`: tiles in fp32 or fp64 (host.py says how and why)."""

from __future__ import annotations

import torch

from modegap.kernels import host
from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace


def _host(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return None
    if a.dtype is torch.float64:
        return "fp64 BLAS tiles"
    refusal = host.onednn_refusal()
    return f"BLAS tiles: {refusal}" if refusal else "oneDNN AVX-512 tiles"


@register("cross_update", "cpu", supports=_host)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """fp64 rows as they are; fp32 rows in packed blocks of at most `CHAIN_ROWS`, each added to the result."""
    if a.dtype is torch.float64:
        host.add_wide(a, b, out, lower=False)
        return
    scratch = workspace or Workspace()
    for lo in range(0, a.shape[0], host.CHAIN_ROWS):
        left, right = a[lo : lo + host.CHAIN_ROWS], b[lo : lo + host.CHAIN_ROWS]
        packed = host.pack(left, scratch, "cross.a"), host.pack(right, scratch, "cross.b")
        host.add_products(*packed, out, lower=False)
