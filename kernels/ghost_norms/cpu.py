"""Host path of `ghost_norms`: tiles in fp32 (fp64 for fp64 inputs), products by host.py's best engine.

By the way that takes fewer flops, as on a GPU: the lower triangle of the two T x T Gram matrices, or the
entries of A'G. Chains of products are cut at 512 terms. The sum over the Gram matrices cancels where the
positions' contributions do: its rounding is that of sum_ts |a_t||a_s||g_t||g_s|, so a sample whose norm is
small beside that is done again by entries, whose rounding is 1e-7 of sum_t |a_t||g_t|. A sample near either
end of fp32's range is done in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from ..dispatch import register
from ..host import LEAST_SQUARE, MOST_SQUARE, Product, dots, needs_grad, products
from ..threads import blas_alone, parallel

_CHAIN = 512
_TILE = 512
_THIN = 64
_CANCELLED = 6e-3
"""Of (sum_t |a_t||g_t|)^2 / T, what the squared norm must reach: rounding then leaves at most 5e-6 of it."""


def _host(a: torch.Tensor, g: torch.Tensor) -> str | None:
    if a.device.type != "cpu" or needs_grad(a, g):
        return None
    return "entries by tiles on the host" if _by_entries(a, g) else "Gram matrices by tiles on the host"


def _by_entries(a: torch.Tensor, g: torch.Tensor) -> bool:
    T, d, p = a.shape[1], a.shape[2], g.shape[2]
    return T * (d + p) > 2 * d * p


@register("ghost_norms", "cpu", supports=_host)
def ghost_norms(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """One sample after the other, its tiles in all threads."""
    narrow = torch.float64 if a.dtype is torch.float64 else torch.float32
    squares = torch.zeros(len(a), dtype=torch.float64)
    if a.numel() == 0 or g.numel() == 0:
        return squares
    if min(a.shape[2], g.shape[2]) <= _THIN and _by_entries(a, g):
        squares.copy_(_of_thin_entries(*((a, g) if a.shape[2] >= g.shape[2] else (g, a)), narrow))
    else:
        for b in range(len(a)):
            square = None if _by_entries(a, g) else _by_grams(a[b], g[b], narrow)
            squares[b] = _of_entries(a[b], g[b], narrow) if square is None else square
    if narrow is not torch.float64:
        for b in torch.nonzero(~((squares >= LEAST_SQUARE) & (squares <= MOST_SQUARE))).flatten().tolist():
            squares[b] = _of_entries(a[b], g[b], torch.float64)
    return squares.sqrt_()


def _by_grams(a: torch.Tensor, g: torch.Tensor, dtype: torch.dtype) -> float | None:
    """sum_ts (a_t'a_s)(g_t'g_s); None where too much of it cancels, or fp32 does not hold |A|^2 or |G|^2."""
    T = len(a)
    left, right = _pieces(a, dtype), _pieces(g, dtype)
    step = min(_TILE, max(64, -(-T // 4)))  # several threads want more than the one tile of a short sequence
    starts = range(0, T, step)
    norms = torch.zeros((2, T), dtype=torch.float64)

    def tile(i: int, j: int) -> float:
        one, two = (_product(x, x, i, j, step, times) for x in (left, right))
        if i == j:
            norms[0, i : i + step], norms[1, i : i + step] = one.diagonal(), two.diagonal()
        return dots(one, two) * (1.0 if i == j else 2.0)

    with products(dtype) as times:
        square = _summed(tile, [(i, j) for i in starts for j in starts if j <= i])
    inside = all(LEAST_SQUARE <= float(total) <= MOST_SQUARE for total in norms.sum(1))
    bound = float(norms.prod(0).sqrt().sum()) ** 2
    return square if inside and square >= _CANCELLED * bound / T else None


def _of_entries(a: torch.Tensor, g: torch.Tensor, dtype: torch.dtype) -> float:
    """Sum of squares of A'G."""
    left, right = _pieces(a.T, dtype), _pieces(g.T, dtype)

    def tile(i: int, j: int) -> float:
        entries = _product(left, right, i, j, _TILE, times)
        return dots(entries, entries)

    with products(dtype) as times:
        return _summed(
            tile, [(i, j) for i in range(0, a.shape[1], _TILE) for j in range(0, g.shape[1], _TILE)]
        )


def _of_thin_entries(a: torch.Tensor, g: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sums of squares of every A'G [B] for G of few columns, as LoRA's are: packing A' would take longer than it."""
    wide, thin = a.to(dtype).numpy(), g.to(dtype).numpy()
    found = np.zeros(len(a))

    def sample(b: int) -> None:
        found[b] = _thin_square(wide[b], thin[b])

    with blas_alone():
        parallel(sample, range(len(a)))
    return torch.from_numpy(found)


def _thin_square(wide: np.ndarray, thin: np.ndarray) -> float:
    cuts = [slice(lo, lo + _CHAIN) for lo in range(0, len(wide), _CHAIN)]
    entries = torch.from_numpy(sum((np.matmul(wide[cut].T, thin[cut]) for cut in cuts[1:]),
                                   start=np.matmul(wide[cuts[0]].T, thin[cuts[0]])))  # fmt: skip
    return dots(entries.contiguous(), entries.contiguous())


def lora_norms(
    x: torch.Tensor, g: torch.Tensor, down: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Norms of both factors' gradients, a sample a task; None where ranks, devices or values ask for another way."""
    if x.dim() != 3 or g.dim() != 3 or x.shape[:2] != g.shape[:2] or x.dtype != g.dtype:
        return None  # `ghost_norms` says what is wrong
    T, d, p, r = x.shape[1], x.shape[2], g.shape[2], len(down)
    thin = r <= _THIN and T * (d + r) > 2 * d * r and T * (p + r) > 2 * p * r
    if not thin or x.device.type != "cpu" or needs_grad(x, g, down, up):
        return None
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    inputs, outputs = x.to(dtype).numpy(), g.to(dtype).numpy()
    below, above = down.detach().to(dtype).numpy(), up.detach().to(dtype).numpy()
    squares = np.zeros((2, len(x)))

    def sample(b: int) -> None:
        squares[0, b] = _thin_square(inputs[b], np.matmul(outputs[b], above))
        squares[1, b] = _thin_square(outputs[b], np.matmul(inputs[b], below.T))

    with blas_alone():
        parallel(sample, range(len(x)))
    if dtype is torch.float32 and not ((squares >= LEAST_SQUARE) & (squares <= MOST_SQUARE)).all():
        return None
    of_down, of_up = torch.from_numpy(np.sqrt(squares))
    return of_down, of_up


def _pieces(x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Contiguous pieces [n, <= 512] of the columns of x [n, d]."""
    cuts = [x[:, lo : lo + _CHAIN] for lo in range(0, x.shape[1], _CHAIN)]
    out = [torch.empty(cut.shape, dtype=dtype) for cut in cuts]

    def fill(i: int) -> None:
        out[i].copy_(cuts[i])

    parallel(fill, range(len(cuts)))
    return out


def _product(
    left: list[torch.Tensor], right: list[torch.Tensor], i: int, j: int, step: int, times: Product
) -> torch.Tensor:
    """The tile of sum over pieces of left right' that begins at (i, j)."""
    parts = (times(x[i : i + step], y[j : j + step]) for x, y in zip(left, right, strict=True))
    total = next(parts)
    for part in parts:
        total.add_(part)
    return total


def _summed(tile: Callable[[int, int], float], at: list[tuple[int, int]]) -> float:
    found = [0.0] * len(at)

    def work(k: int) -> None:
        found[k] = tile(*at[k])

    parallel(work, range(len(at)))
    return math.fsum(found)
