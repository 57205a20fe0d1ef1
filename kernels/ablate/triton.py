"""z' = z - U U' z: on Hopper by TMA (hopper.py); elsewhere a program owns a few rows and reads them twice.

U is cut into high and low half-precision parts, and c = z U too once each row is scaled by a power of two,
so that what is left in the subspace is the rounding of z' (2.1e-4 of it in fp16; a half-precision addmm
leaves 3.6e-4). A U in the dtype of half-precision states has no low part.

Triton rather than cuBLAS: addmm rounds c to half precision and takes more passes. On one H100, 16,384 x 4096
fp16, K = 16 / 64 / 128 / 256: 0.66 / 0.60 / 0.54 / 0.38 of copy bandwidth, 2.1 / 1.9 / 1.7 / 1.25 times
addmm; 2.8 times at K = 11, which addmm serves unaligned. The portable kernel reaches 0.59 / 0.50 / 0.42
there: with all rows in flight at once its second read misses L2.

More directions than a program can hold (256, portable 128): c by the library in fp32, the rest by tiles.
That is half as fast as addmm at K = 512 (0.66 ms against 0.33) and is shipped all the same: addmm's rounding
of c leaves 3.7e-4 of c in the subspace, which is not small where a massive direction is removed.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from .._triton.config import Config, capability, device_of, pick
from .._triton.split import SCALE, Split, split
from ..dispatch import register

MOST = 128
"""Directions one program can hold."""
_HALF_TO_FLOAT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)  # mm(out_dtype=)
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
    90: Config({"BM": 128, "BD": 256, "BK": 32}, warps=8, stages=3),
}
"""fp16 and bf16 states, more directions."""


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
    for j in tl.range(0, d, BD):
        inside = j + column < d
        keep = live & inside[None, :]
        t = tl.load(z + row[:, None] * stride + (j + column)[None, :], mask=keep, other=0.0)
        at = (j + column)[:, None] * KP + mode[None, :]
        u = tl.load(high + at, mask=inside[:, None], other=0.0).T
        part = tl.dot(main, u, input_precision="tf32x3")
        if LOW:
            part = tl.dot(rest, u, part)
            part = tl.dot(main, tl.load(low + at, mask=inside[:, None], other=0.0).T, part)
        result = (t.to(tl.float32) - part * back).to(z.dtype.element_ty)
        tl.store(out + row[:, None] * d + (j + column)[None, :], result, mask=keep)


@triton.jit
def cut_kernel(c, main, rest, unit, rows, columns, BM: tl.constexpr, BK: tl.constexpr):
    """c [rows, 2 columns] (products with both parts of U) as unit * (main + rest) in half precision."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    mode = tl.arange(0, BK)
    live = (row < rows)[:, None]
    largest = tl.zeros((BM, BK), tl.float32) + 1e-30
    for k in range(0, columns, BK):
        keep = live & (k + mode < columns)[None, :]
        at = c + row[:, None] * (2 * columns) + (k + mode)[None, :]
        x = tl.load(at, mask=keep, other=0.0) + tl.load(at + columns, mask=keep, other=0.0)
        largest = tl.maximum(largest, tl.abs(x))
    power = tl.exp2(tl.floor(tl.log2(tl.max(largest, axis=1))))
    tl.store(unit + row, power, mask=row < rows)
    for k in range(0, columns, BK):
        keep = live & (k + mode < columns)[None, :]
        at = c + row[:, None] * (2 * columns) + (k + mode)[None, :]
        x = tl.load(at, mask=keep, other=0.0) + tl.load(at + columns, mask=keep, other=0.0)
        x = x / power[:, None]
        high = x.to(main.dtype.element_ty)
        at = row[:, None] * columns + (k + mode)[None, :]
        tl.store(main + at, high, mask=keep)
        tl.store(rest + at, (x - high.to(tl.float32)).to(main.dtype.element_ty), mask=keep)


@triton.jit
def subtract_kernel(
    z,
    main,
    rest,
    unit,
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
    """out = z - unit * (main + rest) U' for a block of BM x BD."""
    row = tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    column = tl.program_id(0) * BD + tl.arange(0, BD)
    mode = tl.arange(0, BK)
    live = (row < rows)[:, None]
    inside = (column < d)[:, None]
    total = tl.zeros((BM, BD), tl.float32)
    left = row[:, None] * columns + mode[None, :]
    right = column[:, None] * columns + mode[None, :]
    for k in tl.range(0, columns, BK):
        some = (k + mode < columns)[None, :]
        x = tl.load(main + left, mask=live & some, other=0.0)
        u = tl.load(high + right, mask=inside & some, other=0.0).T
        total = tl.dot(x, u, total)
        total = tl.dot(x, tl.load(low + right, mask=inside & some, other=0.0).T, total)
        total = tl.dot(tl.load(rest + left, mask=live & some, other=0.0), u, total)
        left += BK
        right += BK
    keep = live & (column < d)[None, :]
    t = tl.load(z + row[:, None] * stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
    back = tl.load(unit + row, mask=row < rows, other=0.0)[:, None] / (scale * scale)
    result = (t - total * back).to(z.dtype.element_ty)
    tl.store(out + row[:, None] * d + column[None, :], result, mask=keep)


def _cuda(z: torch.Tensor, U: torch.Tensor) -> str | None:
    if not z.is_cuda or z.dtype is torch.float64 or (torch.is_grad_enabled() and U.requires_grad):
        return None
    K = U.shape[1]
    if _hopper(z, K) is not None:
        return "warp-specialised Hopper kernel, " + (
            "one part" if U.dtype is z.dtype else "high and low parts"
        )
    if K <= MOST:
        return "fused, high and low parts" if z.dtype is not torch.float32 else "fused, tf32 x 3"
    if z.dtype is torch.float32 or not _HALF_TO_FLOAT:
        return None
    return "library GEMM and subtraction by tiles, high and low parts"


class _Ablate(torch.autograd.Function):
    """The map is linear and symmetric: its gradient is itself."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
        ctx.basis = U
        return _ablate(z, U)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _ablate(grad, ctx.basis), None


@register("ablate", "triton", supports=_cuda)
def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Any leading shape; a z whose last axis is strided is copied. Workspace: U cut (kept while U lives)."""
    result: torch.Tensor = _Ablate.apply(z, U)
    return result


def _ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    d, K = U.shape
    rows = z.detach().reshape(-1, d)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty((len(rows), d), dtype=z.dtype, device=z.device)
    if not (len(rows) and K):
        return out.copy_(rows).view(z.shape)
    with device_of(z):
        hopper = _hopper(rows, K)
        if hopper is not None:
            cut = split(U, z.dtype, _padded(K), scale=SCALE, transposed=True)
            low = None if U.dtype is z.dtype else cut.low
            hopper.launch(rows, cut.high, low, float(cut.scale), out)
        elif K > MOST:
            _by_gemm(rows, split(U, z.dtype, triton.cdiv(K, 16) * 16, scale=SCALE), out)
        else:
            _fused(rows, U, out)
    return out.view(z.shape)


def _padded(K: int) -> int:
    return max(16, int(triton.next_power_of_2(K)))


def _hopper(rows: torch.Tensor, K: int) -> Any:
    """The Hopper kernel where it can run these rows, else None."""
    if not rows.is_cuda or capability(rows.device) != 90 or rows.dtype not in (torch.float16, torch.bfloat16):
        return None
    hopper = _hopper_module()
    return hopper if hopper is not None and max(hopper.SHAPES) >= K and hopper.serves(rows) else None


@lru_cache(maxsize=1)
def _hopper_module() -> Any:
    try:
        from . import hopper
    except (ImportError, AttributeError):  # Triton without Gluon, or another one
        return None
    return hopper


def _fused(rows: torch.Tensor, U: torch.Tensor, out: torch.Tensor) -> None:
    padded = _padded(U.shape[1])
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
    columns = cut.high.shape[1]
    main, rest = torch.empty((2, n, columns), dtype=rows.dtype, device=rows.device)
    unit = torch.empty(n, dtype=torch.float32, device=rows.device)
    cut_kernel[(triton.cdiv(n, 8),)](c, main, rest, unit, n, columns, BM=8, BK=128, num_warps=4)
    config = pick(MANY, rows.device)
    subtract_kernel[(triton.cdiv(d, int(config.blocks["BD"])), triton.cdiv(n, int(config.blocks["BM"])))](
        rows,
        main,
        rest,
        unit,
        out,
        cut.high,
        cut.low,
        n,
        d,
        columns,
        rows.stride(0),
        float(cut.scale),
        **config.launch,
    )
