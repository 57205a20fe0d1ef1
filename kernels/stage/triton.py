"""out[n, j] = x[n, j] * scale - shift[j] with the cast fused, and optionally the column sums of out.

Triton rather than CuPy or torch: at 65,536 x 4096 fp16 on one H100 this takes 5.6 ns/row, 0.96 of copy
bandwidth (6.1 with the column sums and the count of inexact values), torch.sub 10.3, and a CuPy elementwise
kernel, whose 2-byte accesses are not vectorised, 19. Fused into the Gram kernel the subtraction would
defeat its asynchronous copies.
Bytes: x once, out once, 4 d a 512 rows for the sums.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._triton.config import Config, device_of, pick
from ..dispatch import register

CONFIGS = {80: Config({"CHUNK": 64, "BT": 16, "BD": 128, "DEPTH": 3}, warps=2)}
SUMMING = {80: Config({"CHUNK": 512, "BT": 16, "BD": 128, "DEPTH": 3}, warps=2)}
"""With sums: longer chunks leave fewer partial sums to add."""


@triton.jit
def stage_kernel(
    x,
    shift,
    out,
    sums,
    inexact,
    n,
    d,
    stride_x,
    stride_out,
    scale,
    REPORT: tl.constexpr,
    CHUNK: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """CHUNK rows by BD columns; fp64 arithmetic for an fp64 `out`, else fp32."""
    column = tl.program_id(0) * BD + tl.arange(0, BD)
    chunk = tl.program_id(1)
    inside = column < d
    wide: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    c = tl.load(shift + column, mask=inside, other=0.0).to(wide)[None, :]
    total = tl.zeros((BT, BD), wide)
    wrong = tl.zeros((BT, BD), tl.int32)
    for t in tl.range(0, CHUNK, BT, num_stages=DEPTH):
        row = (chunk * CHUNK + t + tl.arange(0, BT)).to(tl.int64)[:, None]
        keep = (row < n) & inside[None, :]
        v = tl.load(x + row * stride_x + column[None, :], mask=keep, other=0.0, eviction_policy="evict_first")
        v = v.to(wide) * scale - c
        y = v.to(out.dtype.element_ty)
        tl.store(out + row * stride_out + column[None, :], y, mask=keep, cache_modifier=".cs")
        if REPORT:
            total += tl.where(keep, y.to(wide), 0.0)
            wrong += (keep & (y.to(wide) != v)).to(tl.int32)
    if REPORT:
        tl.store(sums + chunk.to(tl.int64) * d + column, tl.sum(total, axis=0), mask=inside)
        tl.store(
            inexact + chunk * tl.num_programs(0) + tl.program_id(0), tl.sum(tl.sum(wrong, axis=1), axis=0)
        )


def _cuda(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> str | None:
    if not x.is_cuda or x.dtype is torch.float64:
        return None
    if out.dtype in (torch.float16, torch.bfloat16) and scale != 1.0:
        return None  # the scale is there because true values may not fit 16 bits
    return "cast, scale and shift in one pass"


@register("stage", "triton", supports=_cuda)
def stage(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """One pass; an x or out whose rows are not contiguous goes through a contiguous copy."""
    _run(x, shift, scale, out, None, None)


@register("stage_and_sum", "triton", supports=_cuda)
def stage_and_sum(
    x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`stage`, returning also (column sums of out, fp64 [d]; values whose rounding was not exact, int64 []).

    The sums are taken in fp32 (fp64 for an fp64 out) over 512 rows and in fp64 over those, from the same
    loads: a separate pass would read everything once more. A subtraction is exact where c/2 <= x <= 2c
    (Sterbenz). Workspace: 12 bytes a column and 512 rows.
    """
    columns, rows = _grid(x, pick(SUMMING, x.device))
    wide = torch.float64 if out.dtype is torch.float64 else torch.float32
    sums = torch.empty((rows, x.shape[1]), dtype=wide, device=x.device)
    inexact = torch.empty(columns * rows, dtype=torch.int32, device=x.device)
    _run(x, shift, scale, out, sums, inexact)
    return sums.sum(0, dtype=torch.float64), inexact.sum(dtype=torch.int64)


def _grid(x: torch.Tensor, config: Config) -> tuple[int, int]:
    across, down = int(config.blocks["BD"]), int(config.blocks["CHUNK"])
    return triton.cdiv(x.shape[1], across), triton.cdiv(x.shape[0], down)


def _run(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    sums: torch.Tensor | None,
    inexact: torch.Tensor | None,
) -> None:
    n, d = x.shape
    if not (n and d):
        return
    x = x if x.stride(1) == 1 else x.contiguous()
    target = out if out.stride(1) == 1 else torch.empty((n, d), dtype=out.dtype, device=out.device)
    unused = shift
    config = pick(CONFIGS if sums is None else SUMMING, x.device)
    with device_of(x):
        stage_kernel[_grid(x, config)](
            x,
            shift.contiguous(),
            target,
            unused if sums is None else sums,
            unused if inexact is None else inexact,
            n,
            d,
            x.stride(0),
            target.stride(0),
            float(scale),
            REPORT=sums is not None,
            **config.launch,
        )
    if target is not out:
        out[:n] = target
