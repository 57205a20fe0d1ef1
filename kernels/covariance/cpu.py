"""Host paths of `covariance_update`: oneDNN tiles of the triangle, SYRK, DSYRK (host.py says why)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.host import CHAIN_ROWS, SUM_ROWS, add_products, onednn_refusal, pack
from modegap.kernels.workspace import Workspace

_FLUSH_ROWS = 64


def _host(rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if rows.device.type != "cpu":
        return None
    if mode == "exact":
        return "DSYRK" if rows.dtype is torch.float64 else None
    if rows.dtype is not torch.float32:
        return None
    refusal = onednn_refusal()
    return f"SYRK: {refusal}" if refusal else "oneDNN AVX-512 tiles of the triangle"


@register("covariance_update", "cpu", supports=_host)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows through the engine that `_host` named."""
    scratch = workspace or Workspace()
    use_onednn = mode != "exact" and not onednn_refusal()
    for lo in range(0, rows.shape[0], CHAIN_ROWS):
        block = rows[lo : lo + CHAIN_ROWS]
        if mode == "exact":
            _dsyrk(block.contiguous(), gram)
        elif use_onednn:
            pieces = pack(block, scratch, "covariance.packed")
            add_products(pieces, pieces, gram, lower=True)
        else:
            _ssyrk(block.contiguous(), gram, scratch)


def _ssyrk(block: torch.Tensor, gram: torch.Tensor, scratch: Workspace) -> None:
    n, d = block.shape
    triangle = scratch.get("covariance.triangle", (d, d), torch.float32)
    for lo in range(0, n, SUM_ROWS):
        _blas("ssyrk", block[lo : lo + SUM_ROWS], triangle, beta=float(lo > 0))
    for lo in range(0, d, _FLUSH_ROWS):
        hi = min(lo + _FLUSH_ROWS, d)
        # The scratch above the diagonal was never written, so the diagonal block is masked.
        gram[lo:hi, :lo].add_(triangle[lo:hi, :lo])
        gram[lo:hi, lo:hi].add_(triangle[lo:hi, lo:hi].tril())


def _dsyrk(block: torch.Tensor, gram: torch.Tensor) -> None:
    if gram.is_contiguous():
        _blas("dsyrk", block, gram, beta=1.0)
    else:
        gram += block.T @ block


def _blas(name: str, block: torch.Tensor, out: torch.Tensor, *, beta: float) -> None:
    """out = beta out + block' block on the lower triangle of a row-major matrix, in place.

    BLAS is column-major: row-major rows [n, d] are its [d, n] matrix as they lie, `out` is its own
    transpose, and our lower triangle its upper one.
    """
    import scipy.linalg.blas

    syrk: Any = getattr(scipy.linalg.blas, name)
    target = out.numpy().T
    result = syrk(1.0, block.numpy().T, beta=beta, c=target, trans=0, lower=0, overwrite_c=1)
    if not np.shares_memory(result, target):  # f2py copied: never with the layouts above
        target[...] = result
