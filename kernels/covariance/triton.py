"""gram[i, j] += sum_n rows[n, i] rows[n, j], i >= j, in fp16, sums promoted (_triton/gram.py).

Triton rather than cuBLAS: half the flops (the triangle), and cuBLAS chains its fp32 sums, which biases
variances by -2e-4 where this biases them by -4e-7. On one H100, 65,536 shifted rows: 1.80 times cuBLAS at d
= 4096, 1.92 at 8192. `fast` is `precise` there: chaining would gain 2% (_triton/gram.py).
"""

from __future__ import annotations

import torch

from .._triton.gram import accumulate, serving
from ..dispatch import Mode, register
from ..workspace import Workspace


def _cuda(rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if not rows.is_cuda or mode == "exact" or rows.dtype not in (torch.float16, torch.bfloat16):
        return None
    return f"{serving(rows.device, rows.shape[1])}, chains of 128 rows promoted"


@register("covariance_update", "triton", supports=_cuda)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """The lower triangle of rows' rows; fast lets the portable kernel chain."""
    accumulate(rows, rows, gram, lower=True, promote=mode != "fast", workspace=workspace)
