"""out[i, j] += sum_n a[n, i] b[n, j] in fp16 or bf16, fp32 sums promoted on the way to fp64.

Tensor cores add with round-toward-zero: a chain of R rows is biased by about -(R / 16) 2^-23. A chain is
therefore cut after 128 rows (two dots of 64), its sum is added to an outer fp32 accumulator (round to
nearest), and that is added to the fp64 master every 32,768 rows at most. Triton would fold `acc +=
tl.dot(a, b)` into the chain, which is why a promotion follows two chained dots and never a single one.

Measured on an H100, d = 4096, 65,536 fp16 rows, channels over three decades, shifted: diagonal biased by
-4.2e-7 (chained -2.0e-4), worst error 1.0e-6 of sqrt(S_ii S_jj).

Flops n d (d + 1) for a triangle (the blocks on the diagonal are computed whole), 2 n p q for a product.
Bytes: rows from DRAM once a wave of programs, the master read and written once per 32,768 rows.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from ..workspace import Workspace
from .config import Config, capability, device_of, multiprocessors, pick
from .plan import MAX_ROWS, plan

CONFIGS = {
    80: Config({"BK": 64}, warps=8, stages=2),
    86: Config({"BK": 32}, warps=8, stages=2),
    90: Config({"BK": 32}, warps=8, stages=3),
}
"""Of the portable kernel. On 90 it serves where the Hopper kernel cannot (odd widths, another Triton)."""


@triton.jit
def _tile(src, stride, width, k, stop, column, BK: tl.constexpr):
    rows = tl.arange(0, BK)[:, None]
    columns = tl.arange(0, 128)[None, :]
    base = src + tl.cast(k, tl.int64) * stride + column
    live = (k + rows < stop) & (column + columns < width)
    return tl.load(base + rows * stride + columns, mask=live, other=0.0)


@triton.jit
def _flush(out, work, ld, p, q, panel, block, slot, acc, SIDE: tl.constexpr, LOWER: tl.constexpr):
    i = tl.arange(0, 128)[:, None]
    j = tl.arange(0, 128)[None, :]
    if slot >= 0:
        tl.store(work + slot.to(tl.int64) * 32768 + i * 256 + (j + 128 * SIDE), acc)
    elif block >= 0:
        r = panel * 128 + i
        c = block * 128 + j
        if LOWER and block > panel:
            at = out + c.to(tl.int64) * ld + r
            keep = (c < q) & (r < p)
        else:
            at = out + r.to(tl.int64) * ld + c
            keep = (r < p) & (c < q)
            if LOWER:
                keep = keep & (c <= r)
        tl.store(at, tl.load(at, mask=keep, other=0.0) + acc.to(tl.float64), mask=keep)


@triton.jit
def gram_kernel(
    a,
    b,
    out,
    work,
    units,
    stride_a,
    stride_b,
    ld,
    p,
    q,
    BK: tl.constexpr,
    FLUSH: tl.constexpr,
    LOWER: tl.constexpr,
    PROMOTE: tl.constexpr,
):
    """One unit of the plan: a panel of `a` against two blocks of `b` (see plan.py)."""
    unit = units + tl.program_id(0) * 6
    panel = tl.load(unit)
    first = tl.load(unit + 1)
    second = tl.load(unit + 2)
    start = tl.load(unit + 3)
    stop = tl.load(unit + 4)
    slot = tl.load(unit + 5)
    row = panel * 128
    one = first * 128
    two = tl.where(second < 0, first, second) * 128
    for segment in range(start, stop, FLUSH):
        end = tl.minimum(segment + FLUSH, stop)
        left = tl.zeros((128, 128), tl.float32)
        right = tl.zeros((128, 128), tl.float32)
        if PROMOTE:
            for k in tl.range(segment, end, 2 * BK):
                x = _tile(a, stride_a, p, k, end, row, BK).T
                y = _tile(a, stride_a, p, k + BK, end, row, BK).T
                part = tl.dot(x, _tile(b, stride_b, q, k, end, one, BK))
                part = tl.dot(y, _tile(b, stride_b, q, k + BK, end, one, BK), part)
                left += part
                part = tl.dot(x, _tile(b, stride_b, q, k, end, two, BK))
                part = tl.dot(y, _tile(b, stride_b, q, k + BK, end, two, BK), part)
                right += part
        else:
            for k in tl.range(segment, end, BK):
                x = _tile(a, stride_a, p, k, end, row, BK).T
                left = tl.dot(x, _tile(b, stride_b, q, k, end, one, BK), left)
                right = tl.dot(x, _tile(b, stride_b, q, k, end, two, BK), right)
        _flush(out, work, ld, p, q, panel, first, slot, left, 0, LOWER)
        _flush(out, work, ld, p, q, panel, second, slot, right, 1, LOWER)


@triton.jit
def fold_kernel(work, folds, out, ld, p, q, LOWER: tl.constexpr, ROWS: tl.constexpr):
    """out += the partial sums of one split unit, in slot order, in fp64."""
    fold = folds + tl.program_id(0) * 5
    side = tl.program_id(1)
    panel = tl.load(fold)
    block = tl.load(fold + 1 + side)
    slot = tl.load(fold + 3)
    count = tl.load(fold + 4)
    i = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, 128)[None, :]
    if block >= 0:
        total = tl.zeros((ROWS, 128), tl.float64)
        source = work + slot.to(tl.int64) * 32768 + i * 256 + 128 * side + j
        for _ in range(count):
            total += tl.load(source).to(tl.float64)
            source += 32768
        r = panel * 128 + i
        c = block * 128 + j
        if LOWER and block > panel:
            at = out + c.to(tl.int64) * ld + r
            keep = (c < q) & (r < p)
        else:
            at = out + r.to(tl.int64) * ld + c
            keep = (r < p) & (c < q)
            if LOWER:
                keep = keep & (c <= r)
        tl.store(at, tl.load(at, mask=keep, other=0.0) + total, mask=keep)


def accumulate(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    *,
    lower: bool,
    promote: bool,
    workspace: Workspace | None = None,
) -> None:
    """Add a' b to `out`: its lower triangle (b is then a), or all of it.

    Args:
        a: fp16 or bf16 [n, p]; a tensor whose rows are not contiguous is copied.
        b: the same dtype, [n, q].
        out: fp64 [p, q], row-major, any row stride.
        lower: only i >= j is touched.
        promote: cut the chains (precise); False lets the portable kernel chain. The Hopper kernel always
            promotes: chaining is 2% faster there and 200 times less accurate.
        workspace: holds fp32 partial sums, 128 KiB for each range of the last, partial wave and, with the Hopper
            kernel, for each multiprocessor (16.5 MiB in all at d = 4096 on an H100, 27 MiB at 5120).
    """
    n, p = a.shape
    q = b.shape[1]
    if not (n and p and q):
        return
    with device_of(a):
        _launch(a, b, out, lower, promote, workspace or Workspace())


def _launch(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, lower: bool, promote: bool, scratch: Workspace
) -> None:
    (n, p), q = a.shape, b.shape[1]
    same = a is b
    a = a if a.stride(1) == 1 else a.contiguous()
    b = a if same else (b if b.stride(1) == 1 else b.contiguous())
    cut = plan(p if lower else (p, q), n, multiprocessors(a.device), a.device)
    hopper = _hopper() if capability(a.device) == 90 and a.is_cuda else None
    if hopper is not None and not (_aligned(a) and _aligned(b)):
        hopper = None
    slots = cut.slots + (len(cut.heads) - 1 if hopper else 0)
    work = scratch.get("gram.partial", (max(slots, 1), 128, 256), torch.float32, a.device)
    if hopper is not None:
        hopper.launch(a, b, out, work, cut, lower=lower)
    else:
        gram_kernel[(len(cut.units),)](
            a,
            b,
            out,
            work,
            cut.units,
            a.stride(0),
            b.stride(0),
            out.stride(0),
            p,
            q,
            FLUSH=MAX_ROWS,
            LOWER=lower,
            PROMOTE=promote,
            **pick(CONFIGS, a.device).launch,
        )
    if cut.slots:
        fold_kernel[(len(cut.folds), 2, 16)](
            work, cut.folds, out, out.stride(0), p, q, LOWER=lower, ROWS=8, num_warps=4
        )


def serving(device: torch.device, width: int) -> str:
    """Which kernel `accumulate` runs for contiguous rows of this width, in words."""
    if device.type == "cuda" and capability(device) == 90 and width % 8 == 0 and _hopper() is not None:
        return "warp-specialised Hopper kernel"
    return "portable kernel"


def _aligned(x: torch.Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


@lru_cache(maxsize=1)
def _hopper() -> Any:
    """The Hopper kernel, or None where this Triton has no Gluon or another one."""
    try:
        from . import hopper
    except (ImportError, AttributeError):
        return None
    return hopper
