"""Host path of `rayleigh`: fp64 products by blocks of S's rows, in numpy's BLAS.

Measured (Zen 5, two threads, d = K = 1024): see bench/results/kernels_cpu.json; torch's own fp64 product
(MKL) takes twice as long on AMD's processors.
"""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import register
from modegap.kernels.host import needs_grad
from modegap.kernels.threads import blas_alone, one_thread, parallel

_ROWS = 256
_COLUMNS = 512


def _host(U: torch.Tensor, S: torch.Tensor) -> str | None:
    return "fp64 BLAS by row blocks" if U.device.type == "cpu" and not needs_grad(U, S) else None


@register("rayleigh", "cpu", supports=_host)
def rayleigh(U: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Every block of rows adds its sum_i U_ik (S U)_ik, 512 directions at a time."""
    starts = range(0, S.shape[0], _ROWS)
    wide = U.double().numpy()
    parts = torch.zeros((len(starts), U.shape[1]), dtype=torch.float64)

    def block(i: int) -> None:
        here = slice(starts[i], starts[i] + _ROWS)
        rows = S[here].double().numpy()
        for lo in range(0, U.shape[1], _COLUMNS):
            columns = slice(lo, lo + _COLUMNS)
            product = torch.from_numpy(np.matmul(rows, wide[:, columns]))
            parts[i, columns] = product.mul_(torch.from_numpy(wide[here, columns])).sum(0)

    with blas_alone():
        parallel(block, range(len(starts)))
    with one_thread():
        return parts.sum(0)
