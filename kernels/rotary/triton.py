"""x cos + rotate_half(x) sin of queries and keys in one launch, read and written once, with any strides.

With x = (a, b), cos = (c, c'), sin = (s, s'): (a c - b s, b c' + a s'). Its gradient is the transposed map,
(g c + h s', h c' - g s), which for the equal halves of RoPE is the rotation by the negative angle; only cos and sin
are kept for it. A program turns all heads of q or of k at one position, or as many as fill 2,048 pairs. Bytes in
half precision: 4 (H + H') D a position, as many backward. On one H100, 24 x 604 positions, 32 + 32 heads of 128:
0.17 ms each way, 0.95 of a device copy's rate; torch's operations take 1.69 forward and 2.27 backward.

q and k are views of [B, T, H, D]: results and gradients get that layout where the operand has it, so that neither
attention nor the projection's backward copies.
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

CONFIGS = {80: Config({"PAIRS": 2048}, warps=4)}


@triton.jit
def _turn(x, out, heads, first, half, stride, stride_out, c, c2, s, s2, BH: tl.constexpr, BD: tl.constexpr):
    head = first + tl.arange(0, BH)
    pair = tl.arange(0, BD)
    live = (head < heads)[:, None] & (pair < half)[None, :]
    at = x + head[:, None].to(tl.int64) * stride + pair[None, :]
    a = tl.load(at, mask=live, other=0.0).to(tl.float32)
    b = tl.load(at + half, mask=live, other=0.0).to(tl.float32)
    to = out + head[:, None].to(tl.int64) * stride_out + pair[None, :]
    tl.store(to, (a * c - b * s).to(out.dtype.element_ty), mask=live)
    tl.store(to + half, (b * c2 + a * s2).to(out.dtype.element_ty), mask=live)


@triton.jit
def rotary_kernel(
    q,
    k,
    cos,
    sin,
    to_q,
    to_k,
    T,
    q_heads,
    k_heads,
    half,
    parts,
    q_b,
    q_h,
    q_t,
    k_b,
    k_h,
    k_t,
    to_q_b,
    to_q_h,
    to_q_t,
    to_k_b,
    to_k_h,
    to_k_t,
    angle_b,
    angle_t,
    BACKWARD: tl.constexpr,
    BH: tl.constexpr,
    BD: tl.constexpr,
):
    """BH heads of q (the first `parts` programs of a position) or of k."""
    sample = (tl.program_id(0) // T).to(tl.int64)
    position = (tl.program_id(0) % T).to(tl.int64)
    part = tl.program_id(1)
    pair = tl.arange(0, BD)
    at = sample * angle_b + position * angle_t + pair
    live = pair < half
    c = tl.load(cos + at, mask=live, other=0.0).to(tl.float32)[None, :]
    c2 = tl.load(cos + at + half, mask=live, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + at, mask=live, other=0.0).to(tl.float32)[None, :]
    s2 = tl.load(sin + at + half, mask=live, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        kept = s
        s = -s2
        s2 = -kept
    if part < parts:
        x = q + sample * q_b + position * q_t
        out = to_q + sample * to_q_b + position * to_q_t
        _turn(x, out, q_heads, part * BH, half, q_h, to_q_h, c, c2, s, s2, BH, BD)
    else:
        x = k + sample * k_b + position * k_t
        out = to_k + sample * to_k_b + position * to_k_t
        _turn(x, out, k_heads, (part - parts) * BH, half, k_h, to_k_h, c, c2, s, s2, BH, BD)


def _cuda(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.numel() > 0 and k.numel() > 0
    return "one launch, fp32 inside" if fits and not needs_grad(cos, sin) else None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        ctx.save_for_backward(cos, sin)
        ctx.inside = _inside(q), _inside(k)
        return _turned(q, k, cos, sin, ctx.inside, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_q: torch.Tensor, to_k: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return (*_turned(to_q, to_k, cos, sin, ctx.inside, backward=True), None, None)


@register("rotary", "triton", supports=_cuda)
def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands whose last axis is strided are copied."""
    if needs_grad(q, k):
        found: tuple[torch.Tensor, torch.Tensor] = _Rotary.apply(q, k, cos, sin)
        return found
    return _turned(q, k, cos, sin, (_inside(q), _inside(k)), backward=False)


def _inside(x: torch.Tensor) -> bool:
    """Whether x [B, H, T, D] has its heads inside of its positions in memory."""
    return x.stride(1) < x.stride(2)


def _like(x: torch.Tensor, inside: bool) -> torch.Tensor:
    B, H, T, D = x.shape
    if inside:
        return torch.empty((B, T, H, D), dtype=x.dtype, device=x.device).transpose(1, 2)
    return torch.empty((B, H, T, D), dtype=x.dtype, device=x.device)


def _turned(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    inside: tuple[bool, bool],
    *,
    backward: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = (x.detach() if x.stride(3) == 1 else x.detach().contiguous() for x in (q, k))
    if cos.stride() != sin.stride() or cos.stride(2) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    to_q, to_k = _like(q, inside[0]), _like(k, inside[1])
    B, heads, T, D = q.shape
    config = pick(CONFIGS, q.device)
    width = triton.next_power_of_2(D // 2)
    most = max(1, int(config.blocks["PAIRS"]) // width)
    block = min(most, triton.next_power_of_2(max(heads, k.shape[1])))
    parts = triton.cdiv(heads, block)
    with device_of(q):
        rotary_kernel[(B * T, parts + triton.cdiv(k.shape[1], block))](
            q,
            k,
            cos,
            sin,
            to_q,
            to_k,
            T,
            heads,
            k.shape[1],
            D // 2,
            parts,
            *q.stride()[:3],
            *k.stride()[:3],
            *to_q.stride()[:3],
            *to_k.stride()[:3],
            0 if cos.shape[0] == 1 else cos.stride(0),
            cos.stride(1),
            BACKWARD=backward,
            BH=block,
            BD=width,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return to_q, to_k
