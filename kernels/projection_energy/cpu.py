"""Host path of `projection_energy`: GEMM on 512-row blocks, squares summed while the block is in cache.

Products in fp32 (fp64 for fp64 rows), squares summed in fp32 within a block and in fp64 across blocks: the
relative error of a direction that holds a share s of the rows' squared norm is about 1e-7 / sqrt(s). oneDNN
where it pays (host.py), else numpy's GEMM.
"""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels import host
from modegap.kernels.dispatch import register

_ROWS = 512


def _host(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> str | None:
    if x.device.type != "cpu":
        return None
    if x.dtype is torch.float64:
        return "DGEMM by row blocks"
    refusal = host.onednn_refusal()
    return f"SGEMM by row blocks: {refusal}" if refusal else "oneDNN AVX-512 by row blocks"


@register("projection_energy", "cpu", supports=_host)
def projection_energy(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> None:
    """Block by block: y = x U, out += sum of y^2, added in the order of the rows."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    use_onednn = dtype is torch.float32 and not host.onednn_refusal()
    directions = U.T.to(dtype).contiguous()
    starts = range(0, x.shape[0], _ROWS)
    sums = torch.zeros((len(starts), U.shape[1]), dtype=torch.float64)

    def block(i: int) -> None:
        rows = x[starts[i] : starts[i] + _ROWS].to(dtype).contiguous()
        if use_onednn:
            y = host.product(rows, directions)
        else:
            y = torch.from_numpy(np.matmul(rows.numpy(), directions.numpy().T))
        sums[i] = y.square_().sum(0)

    if use_onednn:
        host.parallel(block, range(len(starts)))
    else:  # BLAS brings its own threads
        for i in range(len(starts)):
            block(i)
    out += sums.sum(0)
