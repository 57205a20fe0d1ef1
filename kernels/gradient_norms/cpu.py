"""Host path of `gradient_norms`: row blocks upcast in cache, one read of the gradients.

Squares are summed in fp64: gradients of a log-likelihood reach 1e-20 and their squares underflow fp32.
"""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register

_ROWS = 64


def _host(g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None) -> str | None:
    return "fp64 row blocks on the host" if g.device.type == "cpu" else None


@register("gradient_norms", "cpu", supports=_host)
def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of squares and sum of rows from the same upcast block, then one product for all samples."""
    ends = cu_seqlens.tolist()
    count = len(ends) - 1
    squares = torch.zeros(count, dtype=torch.float64)
    means = torch.zeros((count if U is not None else 0, g.shape[1]), dtype=torch.float64)
    for b in range(count):
        for lo in range(ends[b], ends[b + 1], _ROWS):
            block = g[lo : min(lo + _ROWS, ends[b + 1])].double()
            if U is not None:
                means[b] += block.sum(0)
            squares[b] += torch.dot(block.view(-1), block.view(-1))
    if U is None:
        return squares.sqrt_(), None
    means /= cu_seqlens.diff().unsqueeze(1)
    return squares.sqrt_(), means @ U.double()
