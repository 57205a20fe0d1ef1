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
        result = t.to(tl.float32) - part * back
        tl.store(out + row[:, None] * d + (j + column)[None, :], result.to(z.dtype.element_ty), mask=keep)


def _cuda(z: torch.Tensor, U: torch.Tensor) -> str | None:
    if not z.is_cuda or z.dtype is torch.float64 or (torch.is_grad_enabled() and U.requires_grad):
        return None
    K = U.shape[1]
    if K <= MOST:
        return "fused, high and low parts" if z.dtype is not torch.float32 else "fused, tf32 x 3"
    return "half GEMMs on high and low parts" if z.dtype is not torch.float32 else None


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
            _by_gemm(rows, split(U, z.dtype, K, scale=SCALE), out)
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


def _by_gemm(rows: torch.Tensor, cut: Split, out: torch.Tensor, block: int = 4096) -> None:
    """c in fp32 by one product with both parts; the difference by one more, by row blocks to bound the workspace."""
    K = cut.high.shape[1]
    both = torch.cat([cut.high, cut.low], dim=1)
    back = torch.cat([cut.high, cut.high, cut.low], dim=1).T
    for lo in range(0, len(rows), block):
        part = rows[lo : lo + block]
        c = torch.mm(part, both, out_dtype=torch.float32)
        c = c[:, :K] + c[:, K:]
        unit = torch.exp2(torch.floor(torch.log2(c.abs().amax(1, keepdim=True).clamp_min(1e-30))))
        c /= unit
        main = c.to(rows.dtype)
        rest = (c - main.float()).to(rows.dtype)
        delta = torch.mm(torch.cat([main, rest, main], dim=1), back, out_dtype=torch.float32)
        out[lo : lo + block] = torch.addcmul(part.float(), delta, unit, value=-1.0 / float(cut.scale) ** 2)
