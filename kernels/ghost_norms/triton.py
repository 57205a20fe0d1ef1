"""|A_b' G_b|_F per sample by tiles: the Gram way for short sequences, the entries for long ones.

Triton rather than cuBLAS: the library writes two T x T Gram matrices (or the d x p gradients) of every
sample in full and reads them back; here a program forms a tile of both, of the lower triangle only, and
keeps one fp32 number. On one H100, B = 32, T = 512, d = p = 4096 in fp16: 1.2 times the batched products of
the Gram way, 6.0 times forming the gradients. Opacus' ghost norms take 14 times as long in fp32, 1.8 times
in bf16 with an error of 1.5e-3 (2e-5 here), and overflow in fp16. Bytes: a and g once a 128 positions from L2.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._triton.config import Config, device_of, pick
from ..dispatch import register

GRAM = {
    80: Config({"BT": 128, "BK": 64}, warps=8, stages=3),
    86: Config({"BT": 64, "BK": 64}, warps=4, stages=3),
    90: Config({"BT": 128, "BK": 64}, warps=8, stages=4),
}
ENTRIES = {
    80: Config({"BN": 128, "BK": 64}, warps=8, stages=3),
    86: Config({"BN": 128, "BK": 32}, warps=8, stages=3),
    90: Config({"BN": 128, "BK": 64}, warps=8, stages=3),
}
FULL_GRAM = {80: Config({"BT": 64, "BK": 32}, warps=4, stages=2)}
FULL_ENTRIES = {80: Config({"BN": 64, "BK": 32}, warps=4, stages=2)}
"""fp32, in three tf32 products."""


@triton.jit
def _products(x, stride, i, j, T, width, BT: tl.constexpr, BK: tl.constexpr):
    """The BT x BT tile (i, j) of x x'."""
    one = i * BT + tl.arange(0, BT)
    two = j * BT + tl.arange(0, BT)
    inner = tl.arange(0, BK)
    acc = tl.zeros((BT, BT), tl.float32)
    for k in tl.range(0, width, BK):
        inside = (k + inner < width)[None, :]
        p = tl.load(
            x + one[:, None] * stride + (k + inner)[None, :], mask=(one < T)[:, None] & inside, other=0.0
        )
        q = tl.load(
            x + two[:, None] * stride + (k + inner)[None, :], mask=(two < T)[:, None] & inside, other=0.0
        )
        acc = tl.dot(p, q.T, acc, input_precision="tf32x3")
    return acc


@triton.jit
def gram_norm_kernel(a, g, part, T, d, p, BT: tl.constexpr, BK: tl.constexpr):
    """One tile of (A A') o (G G') of one sample, summed; tiles off the diagonal count twice."""
    tile = tl.program_id(0)
    i = (tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) * 0.5 - 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= tile, i + 1, i)
    j = tile - i * (i + 1) // 2
    sample = tl.program_id(1).to(tl.int64)
    left = _products(a + sample * T * d, d, i, j, T, d, BT, BK)
    right = _products(g + sample * T * p, p, i, j, T, p, BT, BK)
    total = tl.sum(tl.sum(left * right, axis=1), axis=0)
    tl.store(part + sample * tl.num_programs(0) + tile, tl.where(i == j, total, 2.0 * total))


@triton.jit
def entries_norm_kernel(a, g, part, T, d, p, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Sum of squares of one BM x BN tile of A' G of one sample."""
    across = tl.cdiv(p, BN)
    row = (tl.program_id(0) // across) * BM + tl.arange(0, BM)
    column = (tl.program_id(0) % across) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    sample = tl.program_id(1).to(tl.int64)
    x = a + sample * T * d
    y = g + sample * T * p
    acc = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, T, BK):
        t = (k + inner)[:, None]
        u = tl.load(x + t.to(tl.int64) * d + row[None, :], mask=(t < T) & (row < d)[None, :], other=0.0)
        v = tl.load(y + t.to(tl.int64) * p + column[None, :], mask=(t < T) & (column < p)[None, :], other=0.0)
        acc = tl.dot(u.T, v, acc, input_precision="tf32x3")
    total = tl.sum(tl.sum(acc * acc, axis=1), axis=0)
    tl.store(part + sample * tl.num_programs(0) + tl.program_id(0), total)


def _cuda(a: torch.Tensor, g: torch.Tensor) -> str | None:
    if not a.is_cuda or a.dtype is torch.float64 or a.numel() == 0 or g.numel() == 0:
        return None
    return "entries by tiles" if by_entries(a, g) else "Gram matrices by tiles"


def by_entries(a: torch.Tensor, g: torch.Tensor) -> bool:
    """Whether forming the gradient's entries takes fewer flops."""
    T, d, p = a.shape[1], a.shape[2], g.shape[2]
    return T * (d + p) > 2 * d * p


@register("ghost_norms", "triton", supports=_cuda)
def ghost_norms(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """fp32 tiles, fp64 over the tiles in a fixed order; inputs that are not contiguous are copied."""
    B, T = a.shape[:2]
    a, g = a.contiguous(), g.contiguous()
    full = a.dtype is torch.float32
    with device_of(a):
        if by_entries(a, g):
            if a.shape[2] > g.shape[2]:
                a, g = g, a
            d, p = a.shape[2], g.shape[2]
            config = pick(FULL_ENTRIES if full else ENTRIES, a.device)
            most = int(config.blocks["BN"])
            height = min(most, max(16, triton.next_power_of_2(d)))
            tiles = triton.cdiv(d, height) * triton.cdiv(p, most)
            part = torch.empty((B, tiles), dtype=torch.float32, device=a.device)
            entries_norm_kernel[(tiles, B)](a, g, part, T, d, p, BM=height, **config.launch)
        else:
            config = pick(FULL_GRAM if full else GRAM, a.device)
            blocks = triton.cdiv(T, int(config.blocks["BT"]))
            part = torch.empty((B, blocks * (blocks + 1) // 2), dtype=torch.float32, device=a.device)
            gram_norm_kernel[(part.shape[1], B)](a, g, part, T, a.shape[2], g.shape[2], **config.launch)
    return part.sum(1, dtype=torch.float64).clamp_min(0.0).sqrt()
