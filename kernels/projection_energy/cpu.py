"""Host path of `projection_energy`: GEMM on 512-row blocks, squares summed while the block is in cache.

Products in fp32 (fp64 for fp64 rows), squares summed in fp32 within a block and in fp64 across blocks: the
relative error of a direction that holds a share s of the rows' squared norm is about 1e-7 / sqrt(s). oneDNN
where it pays (host.py), else numpy's GEMM.
"""

from __future__ import annotations

import torch

from modegap.kernels import host
from modegap.kernels.dispatch import register
from modegap.kernels.threads import one_thread, parallel, scratch, zeros

_ROWS = 512
_DIRECTIONS = 512


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
    with one_thread():
        directions = U.detach().T.to(dtype).contiguous()
    rows = x.detach()
    starts = range(0, x.shape[0], _ROWS)
    sums = zeros(len(starts), U.shape[1])

    def block(i: int) -> None:
        part = rows[starts[i] : starts[i] + _ROWS]
        if part.dtype is not dtype or not part.is_contiguous():
            part = scratch().get(f"projection_energy.{dtype}", tuple(part.shape), dtype).copy_(part)
        for lo in range(0, len(directions), _DIRECTIONS):
            y = times(part, directions[lo : lo + _DIRECTIONS])
            sums[i, lo : lo + _DIRECTIONS] = y.square_().sum(0)

    with host.products(dtype) as times:
        parallel(block, range(len(starts)))
    with one_thread():
        out += sums.sum(0)
