"""Host path of `masked_mean`: fp32 sums of the kept positions, without an upcast copy of x."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _host(x: torch.Tensor, mask: torch.Tensor) -> str | None:
    return "fp32 sums on the host" if x.device.type == "cpu" else None


@register("masked_mean", "cpu", supports=_host)
def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Per batch row: the span of kept positions as a slice where it has no holes, gathered otherwise."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    out = torch.empty((x.shape[0], x.shape[2]), dtype=torch.float32)
    for b in range(x.shape[0]):
        kept = mask[b].nonzero().squeeze(1)
        first, count = int(kept[0]), kept.numel()
        whole = int(kept[-1]) - first + 1 == count
        rows = x[b, first : first + count] if whole else x[b].index_select(0, kept)
        out[b] = torch.sum(rows, dim=0, dtype=dtype) / count
    return out
