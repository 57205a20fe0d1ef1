"""Host path of `gradient_norms`: blocks of 256 Ki values upcast in cache, one read of the gradients.

Squares are summed in fp32 over 512 values and rows in fp32 over a block, both in fp64 beyond: good to 1e-7 of
the norm and of the mean's largest entries. Gradients of a log-likelihood reach 1e-20 and their squares underflow fp32,
so a block whose squares came near either end of fp32's range is done again in fp64.
"""

from __future__ import annotations

import math

import torch

from modegap.kernels import host
from modegap.kernels.dispatch import register
from modegap.kernels.threads import blas_alone, one_thread, parallel, scratch, zeros

_VALUES = 2**18
_TASK_BLOCKS = 16


def _host(g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None) -> str | None:
    fits = g.device.type == "cpu" and not host.needs_grad(g, U)
    return "fp32 row blocks on the host" if fits else None


@register("gradient_norms", "cpu", supports=_host)
def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sum of squares and sum of rows from the same upcast block, then one product for all samples."""
    ends = cu_seqlens.tolist()
    step = max(1, _VALUES // max(1, g.shape[1]))
    tasks = [
        (b, lo, min(lo + _TASK_BLOCKS * step, ends[b + 1]))
        for b in range(len(ends) - 1)
        for lo in range(ends[b], ends[b + 1], _TASK_BLOCKS * step)
    ]
    squares = zeros(len(tasks))
    sums = zeros(len(tasks) if U is not None else 0, g.shape[1])

    def work(i: int) -> None:
        _, start, stop = tasks[i]
        found = [_block(g[lo : min(lo + step, stop)], U is not None) for lo in range(start, stop, step)]
        squares[i] = math.fsum(square for square, _ in found)
        for _, total in found:
            if total is not None:
                sums[i] += total

    parallel(work, range(len(tasks)))
    owner = torch.tensor([b for b, _, _ in tasks], dtype=torch.int64)
    norms = zeros(len(ends) - 1).index_add_(0, owner, squares).sqrt_()
    if U is None:
        return norms, None
    with one_thread(), blas_alone():
        means = zeros(len(ends) - 1, g.shape[1]).index_add_(0, owner, sums)
        means /= cu_seqlens.diff().unsqueeze(1)
        return norms, torch.from_numpy(means.numpy() @ U.detach().double().numpy())


def _block(rows: torch.Tensor, with_sum: bool) -> tuple[float, torch.Tensor | None]:
    if rows.dtype is not torch.float64:
        found = _sums(rows, torch.float32, with_sum)
        if rows.dtype is torch.float16 or host.LEAST_SQUARE <= found[0] <= host.MOST_SQUARE:
            return found
    return _sums(rows, torch.float64, with_sum)


def _sums(rows: torch.Tensor, dtype: torch.dtype, with_sum: bool) -> tuple[float, torch.Tensor | None]:
    if rows.dtype is dtype and rows.is_contiguous():
        wide = rows
    else:
        wide = scratch().get(f"gradient_norms.{dtype}", tuple(rows.shape), dtype)
        wide.copy_(rows)
    return host.dots(wide, wide), wide.sum(0).double() if with_sum else None
