"""Host paths of `cross_update`: oneDNN panels where they pay (host.py), else numpy's GEMM, by column panels of b."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.host import CHAIN_ROWS, PANEL, onednn_refusal, product, transposed
from modegap.kernels.workspace import Workspace


def _host(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):
        return None
    if a.dtype is torch.float64:
        return "DGEMM"
    refusal = onednn_refusal()
    return f"SGEMM: {refusal}" if refusal else "oneDNN AVX-512 panels"


@register("cross_update", "cpu", supports=_host)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows, each added to the fp64 result panel by panel."""
    scratch = workspace or Workspace()
    use_onednn = a.dtype is torch.float32 and not onednn_refusal()
    for lo in range(0, a.shape[0], CHAIN_ROWS):
        left = transposed(a[lo : lo + CHAIN_ROWS], scratch, "cross.a")
        right = transposed(b[lo : lo + CHAIN_ROWS], scratch, "cross.b")
        for at in range(0, right.shape[0], PANEL):
            panel = right[at : at + PANEL]
            if use_onednn:
                part = product(left, panel)
            else:
                part = scratch.get("cross.part", (left.shape[0], panel.shape[0]), a.dtype)
                np.matmul(left.numpy(), panel.numpy().T, out=part.numpy())
            out[:, at : at + PANEL].add_(part)
