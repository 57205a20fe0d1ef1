"""h = silu(gate) * up, and its gradients from gate and up alone: one read of each operand, one write a result.

With s = sigmoid(gate): dgate = dh up s (1 + gate (1 - s)), dup = dh gate s. Bytes for n half-precision values:
6 n forward, 10 n backward; some ten flops a value, so memory decides: on one H100, n = 24 x 604 x 11,008, 0.32 and
0.53 ms, the rate of a device copy (3.0 TB/s). Triton rather than torch's operations, which take 0.53 and 0.94 ms and
keep a third tensor for the backward (silu's output).

The gradients get memory of their own. Written over gate and up they would save 4 n bytes for a moment, and would
spoil what a hook kept of a projection's output, and every second backward through a graph that was kept.
"""

# The bodies of kernels are not Python: they have no types.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .._triton.config import Config, device_of, pick
from ..dispatch import register
from ..host import needs_grad

CONFIGS = {80: Config({"BN": 1024}, warps=4)}
_FLAT = 2**31 - 2**12
"""Values that are walked as one row; more would overflow 32-bit columns."""


@triton.jit
def swiglu_kernel(gate, up, out, columns, blocks, stride_gate, stride_up, BN: tl.constexpr):
    """BN columns of one row; the output's rows are dense."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    inside = column < columns
    x = tl.load(gate + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    h = x / (1.0 + tl.exp(-x)) * y
    tl.store(out + row * columns + column, h.to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(
    gate,
    up,
    grad,
    to_gate,
    to_up,
    columns,
    blocks,
    stride_gate,
    stride_up,
    stride_grad,
    BN: tl.constexpr,
):
    """The gradients of BN columns of one row; their rows are dense."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BN + tl.arange(0, BN)
    inside = column < columns
    x = tl.load(gate + row * stride_gate + column, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(up + row * stride_up + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * stride_grad + column, mask=inside, other=0.0).to(tl.float32)
    s = 1.0 / (1.0 + tl.exp(-x))
    at = row * columns + column
    tl.store(to_gate + at, (g * y * s * (1.0 + x * (1.0 - s))).to(to_gate.dtype.element_ty), mask=inside)
    tl.store(to_up + at, (g * x * s).to(to_up.dtype.element_ty), mask=inside)


def _cuda(gate: torch.Tensor, up: torch.Tensor) -> str | None:
    fits = gate.is_cuda and gate.dtype in (torch.float16, torch.bfloat16) and gate.numel() > 0
    return "one pass, fp32 inside" if fits else None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _forward(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        return _backward(gate, up, grad)


@register("swiglu", "triton", supports=_cuda)
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Halves of one tensor are read where they are; other strided operands are copied."""
    if not needs_grad(gate, up):
        return _forward(gate, up)
    result: torch.Tensor = _SwiGLU.apply(gate, up)
    return result


def _forward(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    (x, y), columns, grid, blocks, launch = _rows(gate, up)
    with device_of(gate):
        swiglu_kernel[grid](x, y, out, columns, blocks, x.stride(0), y.stride(0), **launch)
    return out


def _backward(gate: torch.Tensor, up: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    to_gate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    to_up = torch.empty_like(to_gate)
    (x, y, g), columns, grid, blocks, launch = _rows(gate, up, grad)
    with device_of(gate):
        swiglu_backward_kernel[grid](
            x, y, g, to_gate, to_up, columns, blocks, x.stride(0), y.stride(0), g.stride(0), **launch
        )
    return to_gate, to_up


def _rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int, tuple[int], int, dict[str, Any]]:
    """The operands as rows [n, columns], as one row where all are dense; columns, grid, blocks a row, launch."""
    first = tensors[0]
    dense = all(t.is_contiguous() for t in tensors) and first.numel() < _FLAT
    width = first.numel() if dense else first.shape[-1]
    rows = [t.detach().reshape(-1, width) for t in tensors]
    rows = [t if t.stride(1) == 1 or width == 1 else t.contiguous() for t in rows]
    config = pick(CONFIGS, first.device)
    blocks = triton.cdiv(width, int(config.blocks["BN"]))
    return rows, width, (blocks * len(rows[0]),), blocks, config.launch
