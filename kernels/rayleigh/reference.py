"""The only path of `rayleigh`: an fp64 GEMM and a column reduction, 512 directions at a time."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register

_COLUMNS = 512


def _always(*_: object) -> str:
    return "fp64 GEMM"


@register("rayleigh", "reference", supports=_always)
def rayleigh(U: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    """((S U) * U) summed over rows, in fp64."""
    S = S.double()
    out = torch.empty(U.shape[1], dtype=torch.float64, device=U.device)
    for lo in range(0, U.shape[1], _COLUMNS):
        block = U[:, lo : lo + _COLUMNS].double()
        out[lo : lo + _COLUMNS] = (S @ block).mul_(block).sum(0)
    return out
