"""out[k] += sum_i (x_i' u_k)^2: a product whose epilogue squares and sums; X U is never written.

Triton rather than cuBLAS: the library writes the n x K product and reads it again; the epilogue here keeps
one fp32 partial sum a 128 rows and column, which are added in fp64 in a fixed order (no atomics). Flops 2 n
d K (twice that where U is wider than the rows: high and low parts). Bytes: x once a 256 columns of U, from
L2 after the first. At K = 64 it is bound by reading x: on one H100 at 65,536 x 4096, 538 MB in 183 us, 0.97
of copy bandwidth, and 5 us for the sums of the partial sums.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from .._triton.config import Config, device_of, pick
from .._triton.split import split
from ..dispatch import register

GROUP = 8
NARROW = {
    80: Config({"BM": 128, "BN": 64, "BK": 64}, warps=8, stages=4),
    86: Config({"BM": 128, "BN": 64, "BK": 32}, warps=8, stages=4),
    90: Config({"BM": 128, "BN": 64, "BK": 64}, warps=8, stages=5),
}
"""K up to 64, high and low parts: bound by reading x."""
SINGLE = {80: NARROW[80], 86: NARROW[86], 90: Config({"BM": 64, "BN": 64, "BK": 128}, warps=4, stages=6)}
"""The same with one product a tile."""
WIDE = {
    80: Config({"BM": 128, "BN": 128, "BK": 32}, warps=8, stages=4),
    86: Config({"BM": 128, "BN": 128, "BK": 32}, warps=8, stages=3),
    90: Config({"BM": 128, "BN": 256, "BK": 64}, warps=8, stages=3),
}
"""More: bound by the tensor cores."""
PAIR = {
    80: Config({"BM": 64, "BN": 64, "BK": 32}, warps=4, stages=3),
    90: Config({"BM": 128, "BN": 128, "BK": 64}, warps=8, stages=4),
}
"""More, with high and low parts: two products a tile."""
FINISH = Config({"BB": 512, "BK": 8}, warps=8)
FP32 = {80: Config({"BM": 64, "BN": 64, "BK": 32}, warps=4, stages=2)}
"""fp32 rows, three tf32 products a tile."""


@triton.jit
def energy_kernel(
    x,
    high,
    low,
    part,
    n,
    d,
    columns,
    stride,
    LOW: tl.constexpr,
    GROUP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """part[i, k] = sum of (x_r' u_k)^2 over the BM rows r of block i."""
    down = tl.cdiv(n, BM)
    across = tl.cdiv(columns, BN)
    group = tl.program_id(0) // (GROUP * across)
    size = tl.minimum(down - group * GROUP, GROUP)
    i = group * GROUP + (tl.program_id(0) % (GROUP * across)) % size
    j = (tl.program_id(0) % (GROUP * across)) // size
    row = i * BM + tl.arange(0, BM)
    column = j * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    at = x + row.to(tl.int64)[:, None] * stride + inner[None, :]
    mode = inner.to(tl.int64)[:, None] * columns + column[None, :]
    for k in tl.range(0, d, BK):
        t = tl.load(at, mask=(row < n)[:, None] & (k + inner < d)[None, :], other=0.0)
        live = (k + inner < d)[:, None] & (column < columns)[None, :]
        acc = tl.dot(t, tl.load(high + mode, mask=live, other=0.0), acc, input_precision="tf32x3")
        if LOW:
            acc = tl.dot(t, tl.load(low + mode, mask=live, other=0.0), acc)
        at += BK
        mode += BK * columns
    tl.store(part + i.to(tl.int64) * columns + column, tl.sum(acc * acc, axis=0), mask=column < columns)


@triton.jit
def energy_finish_kernel(part, out, scale, blocks, K, columns, BB: tl.constexpr, BK: tl.constexpr):
    """out += the column sums of part in fp64, undoing the scale of U."""
    column = tl.program_id(0) * BK + tl.arange(0, BK)
    total = tl.zeros((BB, BK), tl.float64)
    for b in range(0, blocks, BB):
        block = b + tl.arange(0, BB)
        live = (block < blocks)[:, None] & (column < K)[None, :]
        at = part + block[:, None].to(tl.int64) * columns + column[None, :]
        total += tl.load(at, mask=live, other=0.0).to(tl.float64)
    factor = tl.load(scale)
    energy = tl.sum(total, axis=0) / (factor * factor)
    tl.store(out + column, tl.load(out + column, mask=column < K, other=0.0) + energy, mask=column < K)


def _cuda(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> str | None:
    if not x.is_cuda or x.dtype is torch.float64:
        return None
    parts = "one product" if _exact(x, U) else "high and low parts of U"
    return f"square-and-sum epilogue, {parts}"


def _exact(x: torch.Tensor, U: torch.Tensor) -> bool:
    """Whether U needs no low part: it has the rows' dtype, or the rows are fp32."""
    return x.dtype is torch.float32 or U.dtype is x.dtype


def configuration(x: torch.Tensor, low: bool, columns: int) -> Config:
    """The configuration for these rows."""
    if x.dtype is torch.float32:
        return pick(FP32, x.device)
    if columns <= 64:
        return pick(NARROW if low else SINGLE, x.device)
    return pick(PAIR if low else WIDE, x.device)


@register("projection_energy", "triton", supports=_cuda)
def projection_energy(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> None:
    """Products in the rows' dtype with fp32 sums over d; U in another dtype is cut into high and low parts.

    An x whose rows are not contiguous is copied. Workspace: 4 bytes a 128 rows and column, and U cut (kept).
    """
    n, d = x.shape
    K = U.shape[1]
    if not (n and d and K):
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    columns = triton.cdiv(K, 16) * 16
    low = not _exact(x, U)
    if U.dtype is x.dtype and columns == K and U.is_contiguous():
        high, lower, scale = U.detach(), U.detach(), _one(x.device)
    else:
        cut = split(U, x.dtype, columns, scale=None if low else 1.0)
        high, lower = cut.high, cut.low
        scale = cut.scale if isinstance(cut.scale, torch.Tensor) else _one(x.device)
    sums = out.contiguous()
    config = configuration(x, low, columns)
    blocks = triton.cdiv(n, int(config.blocks["BM"]))
    part = torch.empty((blocks, columns), dtype=torch.float32, device=x.device)
    with device_of(x):
        energy_kernel[(blocks * triton.cdiv(columns, int(config.blocks["BN"])),)](
            x,
            high,
            lower,
            part,
            n,
            d,
            columns,
            x.stride(0),
            LOW=low,
            GROUP=GROUP,
            **config.launch,
        )
        energy_finish_kernel[(triton.cdiv(K, 8),)](part, sums, scale, blocks, K, columns, **FINISH.launch)
    if sums is not out:
        out.copy_(sums)


@cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float64, device=device)
