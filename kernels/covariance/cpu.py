"""Host paths of `covariance_update`: oneDNN column panels, SYRK, DSYRK (host.py says which and why).

fp32 chains are at most `CHAIN_ROWS` rows long and each is added to the fp64 master at once. Round-to-nearest errors
of such a chain are unbiased, about 1e-7 of sqrt(S_ii S_jj), and average out over blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.host import CHAIN_ROWS, PANEL, onednn_refusal, product, transposed
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
    return f"SYRK: {refusal}" if refusal else "oneDNN AVX-512 panels of the triangle"


@register("covariance_update", "cpu", supports=_host)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows through the engine that `_host` named."""
    scratch = workspace or Workspace()
    use_onednn = mode != "exact" and not onednn_refusal()
    for lo in range(0, rows.shape[0], CHAIN_ROWS):
        block = transposed(rows[lo : lo + CHAIN_ROWS], scratch, "covariance.rows")
        if mode == "exact":
            _dsyrk(block, gram)
        elif use_onednn:
            _panels(block, gram)
        else:
            _syrk(block, gram, scratch)


def _panels(block: torch.Tensor, gram: torch.Tensor) -> None:
    for lo in range(0, block.shape[0], PANEL):
        hi = lo + PANEL
        gram[lo:, lo:hi].add_(product(block[lo:], block[lo:hi]))


def _syrk(block: torch.Tensor, gram: torch.Tensor, scratch: Workspace) -> None:
    d = block.shape[0]
    triangle = scratch.get("covariance.triangle", (d, d), torch.float32)
    _blas("ssyrk", block, triangle, beta=0.0)
    for lo in range(0, d, _FLUSH_ROWS):
        hi = min(lo + _FLUSH_ROWS, d)
        # Above the diagonal the scratch was never written: adding it could carry NaN into the master's strict upper
        # part, which is overwritten later anyway, so the diagonal block is masked instead of trusted.
        gram[lo:hi, :lo].add_(triangle[lo:hi, :lo])
        gram[lo:hi, lo:hi].add_(triangle[lo:hi, lo:hi].tril())


def _dsyrk(block: torch.Tensor, gram: torch.Tensor) -> None:
    if gram.is_contiguous():
        _blas("dsyrk", block, gram, beta=1.0)
    else:
        gram += block @ block.T


def _blas(name: str, block: torch.Tensor, out: torch.Tensor, *, beta: float) -> None:
    """out = beta out + block block' on the lower triangle of a row-major matrix, in place.

    BLAS is column-major: `out` transposed is its matrix and our lower triangle its upper one; block' [n, d] is
    column-major as it lies, hence trans=1.
    """
    import scipy.linalg.blas

    syrk: Any = getattr(scipy.linalg.blas, name)
    target = out.numpy().T
    result = syrk(1.0, block.numpy().T, beta=beta, c=target, trans=1, lower=0, overwrite_c=1)
    if not np.shares_memory(result, target):  # f2py copied: never with the layouts above
        target[...] = result
