"""Host path of `ablate`: fp32 (fp64 for fp64 states) by row blocks that stay in cache, in oneDNN or BLAS.

torch's own products are no match here: fp16 ones run a generic loop, and fp32 ones (MKL) take a slow kernel
on AMD's processors, up to 10 times the time of oneDNN's for z U with 64 columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from modegap.kernels import host
from modegap.kernels.dispatch import register
from modegap.kernels.threads import parallel, scratch

_VALUES = 2**18
_MOST_ROWS = 256
_FEW = 256
"""Rows times modes up to which the plain formula is quicker, as for one token at a time: 25 us against 100."""

_prepared: Any = WeakIdKeyDictionary()  # U -> (its version, dtype, U', U)


def _host(z: torch.Tensor, U: torch.Tensor) -> str | None:
    if z.device.type != "cpu" or (torch.is_grad_enabled() and U.requires_grad):
        return None  # the oracle differentiates by U too
    if z.dtype is torch.float64:
        return "fp64 BLAS row blocks"
    refusal = host.onednn_refusal()
    return f"fp32 BLAS row blocks: {refusal}" if refusal else "oneDNN AVX-512 row blocks"


class _Ablate(torch.autograd.Function):
    """z -> z - U U' z is its own transpose, so gradients are ablated likewise."""

    @staticmethod
    def forward(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
        return _blocks(z, U)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (U,) = ctx.saved_tensors
        return ablate(gradients[0], U), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], z: torch.Tensor, U: torch.Tensor) -> Any:
        if in_dims[0] is None or in_dims[1] is not None:
            raise ValueError("ablate: expected z to be the batched argument of vmap, not U")
        return ablate(z.movedim(in_dims[0], 0), U), 0


@register("ablate", "cpu", supports=_host)
def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Block by block: z - (z U) U' in fp32, one rounding on the way out; U' is kept while U lives."""
    if math.prod(z.shape[:-1]) * U.shape[1] <= _FEW:
        wide, basis = (z, U.double()) if z.dtype is torch.float64 else (z.float(), U.float())
        return (wide - (wide @ basis) @ basis.T).to(z.dtype)
    result: torch.Tensor = _Ablate.apply(z, U)  # type: ignore[no-untyped-call]
    return result


def _blocks(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    dtype = torch.float64 if z.dtype is torch.float64 else torch.float32
    down, up = _factors(U, dtype)
    rows = z.detach().reshape(-1, z.shape[-1])
    out = torch.empty(rows.shape, dtype=rows.dtype)
    step = min(_MOST_ROWS, max(1, _VALUES // max(1, rows.shape[1])))
    starts = range(0, rows.shape[0], step)

    def block(lo: int) -> None:
        part = rows[lo : lo + step]
        wide = scratch().get(f"ablate.{dtype}", tuple(part.shape), dtype).copy_(part)
        out[lo : lo + step] = wide.sub_(times(times(wide, down), up))

    with host.products(dtype) as times:
        parallel(block, starts)
    return out.view(z.shape)


def _factors(U: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """U' [K, d] and U [d, K], both contiguous: hooks call with the same U at every step of a generation."""
    version = -1 if U.is_inference() else U._version
    held = _prepared.get(U)
    if held is None or version < 0 or held[:2] != (version, dtype):
        with torch.inference_mode(False), torch.no_grad():
            wide = U.detach().to(dtype)
            held = _prepared[U] = (version, dtype, wide.T.contiguous(), wide.contiguous())
    return held[2], held[3]
