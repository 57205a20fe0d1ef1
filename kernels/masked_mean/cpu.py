"""Host path of `masked_mean`: blocks of 1 Mi values upcast in cache, rows that are not kept set to zero there."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import register
from modegap.kernels.host import needs_grad
from modegap.kernels.threads import parallel, scratch, zeros

_VALUES = 2**20


def _host(x: torch.Tensor, mask: torch.Tensor) -> str | None:
    fits = x.device.type == "cpu" and not needs_grad(x)
    return "fp32 row blocks on the host" if fits else None


@register("masked_mean", "cpu", supports=_host)
def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Samples in groups, positions in blocks: fp32 sums of a block, fp64 beyond; padding at the ends is skipped."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    count, length, width = x.shape
    group = max(1, _VALUES // max(1, length * width))
    step = max(1, _VALUES // max(1, group * width))
    kept = mask.numpy()
    rows = x.detach()
    out = torch.empty((count, width), dtype=torch.float32)

    def mean(b: int) -> None:
        flags = kept[b : b + group]
        seen = np.flatnonzero(flags.any(axis=0))
        total = zeros(len(flags), width)
        for lo in range(int(seen[0]), int(seen[-1]) + 1, step):
            hi = min(lo + step, int(seen[-1]) + 1)
            part = rows[b : b + group, lo:hi]
            wide = scratch().get(f"masked_mean.{dtype}", tuple(part.shape), dtype).copy_(part)
            dropped = torch.from_numpy(np.flatnonzero(~flags[:, lo:hi]))
            if len(dropped):
                wide.view(-1, width).index_fill_(0, dropped, 0.0)
            total += wide.sum(1)
        out[b : b + group] = total / torch.from_numpy(flags.sum(axis=1)[:, None])

    parallel(mean, range(0, count, group))
    return out
