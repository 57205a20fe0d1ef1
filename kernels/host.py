"""What the host paths share: which matrix product this processor runs best, and transposed blocks.

A Gram update of a transposed block t [d, n] (one channel a contiguous row) goes by column panels of the lower
triangle, C[lo:, lo:hi] += t[lo:] t[lo:hi]', each added to the fp64 master while it is in cache. Two engines:

- oneDNN's fp32 matmul through torch, where the processor has AVX-512. It picks its kernel by CPUID, so Zen 4 and 5
  get AVX-512 too, where OpenBLAS 0.3.31 falls back to its Haswell kernels and MKL to AVX2.
- SYRK from scipy's BLAS (OpenBLAS, Accelerate, MKL) everywhere else, into an fp32 triangle that is then flushed by
  row blocks.

Measured on Zen 5 (AVX-512), d = n = 4096, one thread, milliseconds of CPU time: numpy x.T @ x with its fp32
accumulate 752; torch.mm through MKL 1,480; SYRK 650 + 9 to flush; oneDNN panels 365-380 with the flush included, at
any panel width from 128 to 512 (256 is used: the diagonal tiles waste 256/d). n = 2048 costs 3% more a row than
4096 and halves the buffers. OPENBLAS_CORETYPE=SkylakeX brings SYRK to 350 on that machine, but only a user can set
it, before numpy is imported.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from .workspace import Workspace

CHAIN_ROWS = 2048
"""Most rows whose products are summed in fp32 before they are added to an fp64 master."""

PANEL = 256


@cache
def _onednn_linear() -> Any:
    """oneDNN's dense fp32 linear as a torch operator, or None where torch was built without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    namespace = torch.ops.mkldnn
    return namespace._linear_pointwise.default if hasattr(namespace, "_linear_pointwise") else None


def onednn_refusal() -> str:
    """Why oneDNN may not be used now ("" where it may).

    `torch.set_float32_matmul_precision("high" | "medium")` lets oneDNN round fp32 operands to bf16 or tf32, which
    would break the precision contract, so the setting is looked at before every call.
    """
    if _onednn_linear() is None:
        return "no AVX-512 or no oneDNN"
    if torch.get_float32_matmul_precision() != "highest":
        return f"float32_matmul_precision is {torch.get_float32_matmul_precision()!r}"
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if getattr(matmul, "fp32_precision", "none") not in ("none", "ieee"):
        return "torch.backends.mkldnn.matmul.fp32_precision is not 'ieee'"
    if not torch.backends.mkldnn.enabled:
        return "torch.backends.mkldnn is disabled"
    return ""


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b' in fp32 by oneDNN: a [p, n] and b [q, n], contiguous fp32 (a strided operand can be 1,000x slower)."""
    result: torch.Tensor = _onednn_linear()(a, b, None, "none", [], "")
    return result


def transposed(rows: torch.Tensor, workspace: Workspace, name: str) -> torch.Tensor:
    """rows' as a contiguous [d, n] tensor: a view where `rows` is laid out so, else a copy in the workspace."""
    if rows.T.is_contiguous():
        return rows.T
    out = workspace.get(name, (rows.shape[1], rows.shape[0]), rows.dtype)
    out.copy_(rows.T)
    return out
