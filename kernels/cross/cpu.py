"""Host paths of `cross_update`: oneDNN tiles where they pay (host.py), else numpy's GEMM by column panels."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.host import CHAIN_ROWS, SUM_ROWS, add_products, onednn_refusal, pack
from modegap.kernels.workspace import Workspace

_PANEL = 512


def _host(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return None
    if a.dtype is torch.float64:
        return "DGEMM"
    refusal = onednn_refusal()
    return f"SGEMM: {refusal}" if refusal else "oneDNN AVX-512 tiles"


@register("cross_update", "cpu", supports=_host)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows, each added to the fp64 result."""
    scratch = workspace or Workspace()
    use_onednn = a.dtype is torch.float32 and not onednn_refusal()
    for lo in range(0, a.shape[0], CHAIN_ROWS):
        left, right = a[lo : lo + CHAIN_ROWS], b[lo : lo + CHAIN_ROWS]
        if use_onednn:
            packed = pack(left, scratch, "cross.a"), pack(right, scratch, "cross.b")
            add_products(*packed, out, lower=False)
        else:
            _gemm(left, right, out, scratch)


def _gemm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, scratch: Workspace) -> None:
    step = SUM_ROWS if a.dtype is torch.float32 else max(len(a), 1)
    for at in range(0, b.shape[1], _PANEL):
        panel = b[:, at : at + _PANEL]
        part = scratch.get("cross.part", (a.shape[1], panel.shape[1]), a.dtype)
        total = scratch.get("cross.total", (a.shape[1], panel.shape[1]), a.dtype).zero_()
        for lo in range(0, len(a), step):
            np.matmul(a[lo : lo + step].numpy().T, panel[lo : lo + step].numpy(), out=part.numpy())
            total.add_(part)
        out[:, at : at + _PANEL].add_(total)
