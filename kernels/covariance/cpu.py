"""Host paths of `covariance_update`: tiles of the triangle in fp32 (host.py says how and why), DSYRK."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modegap.kernels import host
from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace


def _host(rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if rows.device.type != "cpu":
        return None
    if mode == "exact":
        return "DSYRK" if rows.dtype is torch.float64 else None
    if rows.dtype is not torch.float32:
        return None
    refusal = host.onednn_refusal()
    return f"BLAS tiles of the triangle: {refusal}" if refusal else "oneDNN AVX-512 tiles of the triangle"


@register("covariance_update", "cpu", supports=_host)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """Blocks of at most `CHAIN_ROWS` rows: packed and multiplied by tiles, or DSYRK in mode exact."""
    scratch = workspace or Workspace()
    for lo in range(0, rows.shape[0], host.CHAIN_ROWS):
        block = rows[lo : lo + host.CHAIN_ROWS]
        if mode == "exact":
            _dsyrk(block.contiguous(), gram)
        else:
            pieces = host.pack(block, scratch, "covariance.packed")
            host.add_products(pieces, pieces, gram, lower=True)


def _dsyrk(block: torch.Tensor, gram: torch.Tensor) -> None:
    """gram += block' block on the lower triangle, in place.

    BLAS is column-major: row-major rows [n, d] are its [d, n] matrix as they lie, `gram` is its own
    transpose, and our lower triangle its upper one.
    """
    import scipy.linalg.blas

    if not gram.is_contiguous():
        gram += block.T @ block
        return
    syrk: Any = scipy.linalg.blas.dsyrk
    target = gram.numpy().T
    result = syrk(1.0, block.numpy().T, beta=1.0, c=target, trans=0, lower=0, overwrite_c=1)
    if not np.shares_memory(result, target):  # f2py copied: never with the layouts above
        target[...] = result
