"""z' = z - U U' z for up to 128 directions: a program owns a few rows, forms c = z U, reads z again and subtracts c U'.

U is cut into high and low half-precision parts, and c too once each row is scaled by a power of two, so that what is
left in the subspace is the rounding of z' (2.1e-4 of it in fp16; a half-precision addmm leaves 3.6e-4).

Triton rather than cuBLAS: addmm rounds c to half precision and takes two passes as well. Bytes: z twice, z' once.
The second read misses L2 where all rows are in flight at once (16,384 rows of 8 KiB are), which is the bound: three
passes over HBM where the floor has two. On one H100, 16,384 x 4096 fp16, K = 16 / 64 / 128: 0.59 / 0.50 / 0.42 of copy
bandwidth, 1.8 / 1.5 / 1.3 times addmm. Above 128 directions the products dominate: three half GEMMs by the library.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .._triton.config import Config, pick
from .._triton.split import SCALE, Split, split
from ..dispatch import register

MOST = 128
"""Directions one program can hold."""
HALF = {
    16: {
        80: Config({"BM": 32, "BD": 128}, warps=4, stages=3),
        86: Config({"BM": 32, "BD": 128}, warps=4, stages=2),
        90: Config({"BM": 32, "BD": 128}, warps=4, stages=3),
    },
    64: {
        80: Config({"BM": 64, "BD": 64}, warps=4, stages=3),
        86: Config({"BM": 64, "BD": 64}, warps=4, stages=2),
        90: Config({"BM": 64, "BD": 128}, warps=4, stages=2),
    },
    128: {
        80: Config({"BM": 64, "BD": 64}, warps=8, stages=2),
        86: Config({"BM": 32, "BD": 32}, warps=4, stages=2),
        90: Config({"BM": 128, "BD": 64}, warps=8, stages=4),
    },
}
"""fp16 and bf16 states, by the number of directions (up to 16, 64, 128)."""
FULL = {
    16: {80: Config({"BM": 32, "BD": 64}, warps=4, stages=2)},
    64: {80: Config({"BM": 32, "BD": 32}, warps=4, stages=2)},
    128: {80: Config({"BM": 32, "BD": 32}, warps=4, stages=2)},
}
"""fp32 states, in three tf32 products."""
MANY = {
    80: Config({"BM": 128, "BD": 128, "BK": 32}, warps=8, stages=2),
    86: Config({"BM": 64, "BD": 64, "BK": 32}, warps=4, stages=2),
    90: Config({"BM": 128, "BD": 128, "BK": 32}, warps=8, stages=3),
}
"""fp16 and bf16 states, more than 128 directions."""


@triton.jit
def ablate_kernel(
    z,
    out,
    high,
    low,
    rows,
    d,
    stride,
    scale,
    KP: tl.constexpr,
    LOW: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
):
    """BM rows, all of d; U scaled by `scale` in parts [d, KP]."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, BD)
    mode = tl.arange(0, KP)
    live = (row < rows)[:, None]
    c = tl.zeros((BM, KP), tl.float32)
    for j in tl.range(0, d, BD):
        inside = j + column < d
        t = tl.load(z + row[:, None] * stride + (j + column)[None, :], mask=live & inside[None, :], other=0.0)
        at = (j + column)[:, None] * KP + mode[None, :]
        u = tl.load(high + at, mask=inside[:, None], other=0.0)
        c = tl.dot(t, u, c, input_precision="tf32x3")
        if LOW:
            c = tl.dot(t, tl.load(low + at, mask=inside[:, None], other=0.0), c)
    largest = tl.maximum(tl.max(tl.abs(c), axis=1), 1e-30)
    unit = tl.exp2(tl.floor(tl.log2(largest)))
    c = c / unit[:, None]
    back = (unit / (scale * scale))[:, None]
    main = c.to(z.dtype.element_ty)
    rest = (c - main.to(tl.float32)).to(z.dtype.element_ty)
    last = (d - 1) // BD * BD
    for i in tl.range(0, d, BD):
        j = last - i  # backwards: what was read last is still in L2
        inside = j + column < d
        keep = live & inside[None, :]
        at = z + row[:, None] * stride + (j + column)[None, :]
        t = tl.load(at, mask=keep, other=0.0, eviction_policy="evict_first").to(tl.float32)
        at = (j + column)[:, None] * KP + mode[None, :]
        u = tl.load(high + at, mask=inside[:, None], other=0.0).T
        part = tl.dot(main, u, input_precision="tf32x3")
        if LOW:
            part = tl.dot(rest, u, part)
            part = tl.dot(main, tl.load(low + at, mask=inside[:, None], other=0.0).T, part)
        result = (t - part * back).to(z.dtype.element_ty)
        at = row[:, None] * d + (j + column)[None, :]
        tl.store(out + at, result, mask=keep, cache_modifier=".cs")


@triton.jit
def subtract_kernel(
    z,
    c,
    out,
    high,
    low,
    rows,
    d,
    columns,
    stride,
    scale,
    BM: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
):
    """out = z - c U' for a block of BM x BD, c [rows, 2 columns] as the products with U's high and low parts."""
    row = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(0) * BD + tl.arange(0, BD)
    live = (row < rows)[:, None]
    inside = column < d
    total = tl.zeros((BM, BD), tl.float32)
    for k in tl.range(0, columns, BK):
        mode = k + tl.arange(0, BK)
        some = mode < columns
        at = c + row[:, None] * (2 * columns) + mode[None, :]
        x = tl.load(at, mask=live & some[None, :], other=0.0)
        x += tl.load(at + columns, mask=live & some[None, :], other=0.0)
        unit = tl.exp2(tl.floor(tl.log2(tl.maximum(tl.max(tl.abs(x), axis=1), 1e-30))))[:, None]
        x = x / unit
        main = x.to(z.dtype.element_ty)
        rest = (x - main.to(tl.float32)).to(z.dtype.element_ty)
        at = column[:, None] * columns + mode[None, :]
        u = tl.load(high + at, mask=inside[:, None] & some[None, :], other=0.0).T
        part = tl.dot(main, u)
        part = tl.dot(rest, u, part)
        part = tl.dot(main, tl.load(low + at, mask=inside[:, None] & some[None, :], other=0.0).T, part)
        total += part * unit
    keep = live & inside[None, :]
    t = tl.load(z + row[:, None] * stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
    result = t - total / (scale * scale)
    tl.store(out + row[:, None] * d + column[None, :], result.to(z.dtype.element_ty), mask=keep)


def _cuda(z: torch.Tensor, U: torch.Tensor) -> str | None:
    if not z.is_cuda or z.dtype is torch.float64 or (torch.is_grad_enabled() and U.requires_grad):
        return None
    K = U.shape[1]
    if K <= MOST:
        return "fused, high and low parts" if z.dtype is not torch.float32 else "fused, tf32 x 3"
    return (
        "library GEMM and subtraction by tiles, high and low parts" if z.dtype is not torch.float32 else None
    )


class _Ablate(torch.autograd.Function):
    """The map is linear and symmetric: its gradient is itself."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
        ctx.basis = U
        return _ablate(z, U)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _ablate(grad, ctx.basis), None


@register("ablate", "triton", supports=_cuda)
def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Any leading shape; a z whose last axis is not contiguous is copied. Workspace: U cut (kept while U lives)."""
    result: torch.Tensor = _Ablate.apply(z, U)  # type: ignore[no-untyped-call]
    return result


def _ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    d, K = U.shape
    rows = z.detach().reshape(-1, d)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty((len(rows), d), dtype=z.dtype, device=z.device)
    if not (len(rows) and K):
        return out.copy_(rows).view(z.shape)
    with torch.cuda.device_of(z):
        if K > MOST:
            _by_gemm(rows, split(U, z.dtype, triton.cdiv(K, 16) * 16, scale=SCALE), out)
        else:
            _fused(rows, U, out)
    return out.view(z.shape)


def _fused(rows: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> None:
    padded = max(16, triton.next_power_of_2(U.shape[1]))
    low = rows.dtype is not torch.float32
    cut = split(U, rows.dtype, padded, scale=SCALE)
    table = HALF if low else FULL
    config = pick(table[min(k for k in table if k >= padded)], rows.device)
    ablate_kernel[(triton.cdiv(len(rows), int(config.blocks["BM"])),)](
        rows,
        out,
        cut.high,
        cut.low,
        len(rows),
        rows.shape[1],
        rows.stride(0),
        float(cut.scale),
        KP=padded,
        LOW=low,
        **config.launch,
    )


def _by_gemm(rows: torch.Tensor, cut: Split, out: torch.Tensor) -> None:
    """c by one library product with both parts of U; the subtraction by tiles."""
    c = torch.mm(rows, torch.cat([cut.high, cut.low], dim=1), out_dtype=torch.float32)
    _subtract(rows, c, cut, out)


def _subtract(rows: torch.Tensor, c: torch.Tensor, cut: Split, out: torch.Tensor) -> None:
    n, d = rows.shape
    config = pick(MANY, rows.device)
    subtract_kernel[(triton.cdiv(d, int(config.blocks["BD"])), triton.cdiv(n, int(config.blocks["BM"])))](
        rows,
        c,
        out,
        cut.high,
        cut.low,
        n,
        d,
        cut.high.shape[1],
        rows.stride(0),
        float(cut.scale),
        **config.launch,
    )
