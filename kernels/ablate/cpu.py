"""Host path of `ablate`: fp32 (fp64 for fp64 states) by row blocks, so that no upcast copy of z is held."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register

_ROWS = 512


def _host(z: torch.Tensor, U: torch.Tensor) -> str | None:
    if z.device.type != "cpu" or (torch.is_grad_enabled() and (z.requires_grad or U.requires_grad)):
        return None  # the oracle is differentiable; blocks written in place are not
    return "fp32 row blocks on the host"


@register("ablate", "cpu", supports=_host)
def ablate(z: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
    """Block by block: z - (z U) U' in fp32, one rounding on the way out."""
    dtype = torch.float64 if z.dtype is torch.float64 else torch.float32
    basis = U.to(dtype)
    rows = z.reshape(-1, z.shape[-1])
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for lo in range(0, rows.shape[0], _ROWS):
        block = rows[lo : lo + _ROWS].to(dtype)
        out[lo : lo + _ROWS] = torch.addmm(block, block @ basis, basis.T, alpha=-1.0)
    return out.view(z.shape)
