"""Host paths of `cross_update`: tiles in fp32 (host.py says how and why), DGEMM."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels import host
from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace

_PANEL = 512


def _host(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return None
    if a.dtype is torch.float64:
        return "DGEMM"
    refusal = host.onednn_refusal()
    return f"BLAS tiles: {refusal}" if refusal else "oneDNN AVX-512 tiles"


@register("cross_update", "cpu", supports=_host)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows, each added to the fp64 result."""
    scratch = workspace or Workspace()
    for lo in range(0, a.shape[0], host.CHAIN_ROWS):
        left, right = a[lo : lo + host.CHAIN_ROWS], b[lo : lo + host.CHAIN_ROWS]
        if a.dtype is torch.float64:
            _dgemm(left, right, out, scratch)
        else:
            packed = host.pack(left, scratch, "cross.a"), host.pack(right, scratch, "cross.b")
            host.add_products(*packed, out, lower=False)


def _dgemm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scratch: Workspace) -> None:
    for at in range(0, b.shape[1], _PANEL):
        panel = b[:, at : at + _PANEL]
        part = scratch.get("cross.part", (a.shape[1], panel.shape[1]), torch.float64)
        np.matmul(a.numpy().T, panel.numpy(), out=part.numpy())
        with host.one_thread():  # beside BLAS threads that still spin, torch's own would wait for a core
            out[:, at : at + _PANEL].add_(part)
