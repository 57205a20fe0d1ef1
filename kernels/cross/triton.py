"""out[i, j] += sum_n a[n, i] b[n, j] in fp16 with promoted partial sums (kernels/_triton/gram.py).

Triton rather than cuBLAS for the error, not for the time: cuBLAS chains its fp32 sums (bias 2e-4 against
4e-7 here) and nothing it offers cuts them. On one H100, 65,536 rows: 46.0 ns/row against 43.0 for cuBLAS at d
= 4096, 196 against 189 at 8192. Profile at 4096: tensor pipes 94.6% active at 1.49 GHz against 99.4% at
1.52 GHz, both at the power limit; 2.9 GB against 2.8 GB read. What is missing is what promotion takes.
Shipped for `fast` too: the library's product would still have to be added to the fp64 master, which costs
what it gains.
"""

from __future__ import annotations

import torch

from .._triton.gram import accumulate, serving
from ..dispatch import Mode, register
from ..workspace import Workspace


def _cuda(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, **_: object) -> str | None:
    if not a.is_cuda or mode == "exact" or a.dtype not in (torch.float16, torch.bfloat16):
        return None
    if out.stride(1) != 1:
        return None
    odd = a.shape[1] if a.shape[1] % 8 else b.shape[1]
    return f"{serving(a.device, odd)}, chains of 128 rows promoted"


@register("cross_update", "triton", supports=_cuda)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """All of a' b; fast lets the portable kernel chain."""
    accumulate(a, b, out, lower=False, promote=mode != "fast", workspace=workspace)
