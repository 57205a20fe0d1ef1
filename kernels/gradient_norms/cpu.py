"""Host path of `gradient_norms`: blocks of 1 Mi values upcast in cache, one read of the gradients.

Squares are summed in fp32 over 512 values, rows in fp32 over 128, both in fp64 beyond: good to 1e-7 of the
norm and of the mean's largest entries. Gradients of a log-likelihood reach 1e-20 and their squares underflow
fp32, so a sample whose squares came near either end of fp32's range is done again in fp64.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import torch

from modegap.kernels import host
from modegap.kernels.dispatch import register
from modegap.kernels.threads import blas_alone, one_thread, parallel, scratch, zeros

_VALUES = 2**20
_ROWS = 128


def _host(g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None) -> str | None:
    fits = g.device.type == "cpu" and not host.needs_grad(g, U)
    return "fp32 row blocks on the host" if fits else None


@register("gradient_norms", "cpu", supports=_host)
def gradient_norms(
    g: torch.Tensor, cu_seqlens: torch.Tensor, U: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Squares by row and sums by sample from the same upcast block, then one product for all samples."""
    ends = cu_seqlens.tolist()
    count, width = len(ends) - 1, g.shape[1]
    if not count:
        return zeros(0), None if U is None else zeros(0, U.shape[1])
    dtype = torch.float64 if g.dtype is torch.float64 else torch.float32
    step = max(1, _VALUES // max(1, width))
    starts = range(0, len(g), step)
    squares = np.empty(len(g))
    sums: list[list[tuple[int, np.ndarray]]] = [[] for _ in starts]

    def block(i: int) -> None:
        lo, hi = starts[i], min(starts[i] + step, len(g))
        wide = _upcast(g[lo:hi], dtype)
        squares[lo:hi] = host.row_squares(wide)
        if U is not None:
            sums[i] = _sums(wide, ends, lo, hi)

    parallel(block, range(len(starts)))
    norms = np.add.reduceat(squares, ends[:-1])
    totals = np.zeros((count if U is not None else 0, width))
    for found in sums:
        for b, total in found:
            totals[b] += total
    if g.dtype in (torch.bfloat16, torch.float32):
        inside = (norms >= host.LEAST_SQUARE) & (norms <= host.MOST_SQUARE)
        for b in np.flatnonzero(~inside).tolist():
            norms[b], total = _in_fp64(g[ends[b] : ends[b + 1]], step)
            if U is not None:
                totals[b] = total
    if U is None:
        return torch.from_numpy(np.sqrt(norms)), None
    with one_thread(), blas_alone():
        totals /= np.diff(ends)[:, None]
        return torch.from_numpy(np.sqrt(norms)), torch.from_numpy(totals @ U.detach().double().numpy())


def _upcast(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if rows.dtype is dtype and rows.is_contiguous():
        return rows.detach()
    return scratch().get(f"gradient_norms.{dtype}", tuple(rows.shape), dtype).copy_(rows)


def _sums(wide: torch.Tensor, ends: list[int], lo: int, hi: int) -> list[tuple[int, np.ndarray]]:
    """(sample, sum of its rows) for the samples that own rows lo to hi, which `wide` holds."""
    rows = wide.numpy()
    out = []
    b = bisect_right(ends, lo) - 1
    while ends[b] < hi:
        mine = rows[max(ends[b], lo) - lo : min(ends[b + 1], hi) - lo]
        whole = len(mine) // _ROWS * _ROWS
        total = mine[whole:].sum(axis=0).astype(np.float64)
        if whole:
            total += mine[:whole].reshape(-1, _ROWS, rows.shape[1]).sum(axis=1).sum(axis=0, dtype=np.float64)
        out.append((b, total))
        b += 1
        if b == len(ends) - 1:
            break
    return out


def _in_fp64(rows: torch.Tensor, step: int) -> tuple[float, np.ndarray]:
    square, total = 0.0, np.zeros(rows.shape[1])
    with one_thread():
        for part in rows.detach().split(step):  # type: ignore[no-untyped-call]
            wide = part.double()
            square += host.dots(wide, wide)
            total += wide.sum(0).numpy()
    return square, total
