"""Host path of `rayleigh`: numpy's own fp64 products, by blocks that bound what fp64 copies take.

Blocks in this package's threads, each product on one core, were slower at every width: 1.9 times at d = 1024
on two Zen 5 cores, 1.0 at 4096. numpy's BLAS rather than torch's (MKL), whose fp64 product took 1.4 to 2 times
as long on AMD's processors.
"""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import register
from modegap.kernels.host import needs_grad

_SIDE = 1024


def _host(U: torch.Tensor, S: torch.Tensor) -> str | None:
    return "numpy's fp64 BLAS" if U.device.type == "cpu" and not needs_grad(U, S) else None


@register("rayleigh", "cpu", supports=_host)
def rayleigh(U: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """Every block of rows adds its sum_i U_ik (S U)_ik."""
    wide = U.double().numpy()
    found = np.zeros(U.shape[1])
    for top in range(0, S.shape[0], _SIDE):
        rows = slice(top, top + _SIDE)
        part = S[rows].double().numpy()
        for left in range(0, U.shape[1], _SIDE):
            columns = slice(left, left + _SIDE)
            found[columns] += np.einsum("ik,ik->k", part @ wide[:, columns], wide[rows, columns])
    return torch.from_numpy(found)
