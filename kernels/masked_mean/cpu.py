"""Host path of `masked_mean`: blocks of 256 Ki values upcast in cache, the kept positions read once."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.dispatch import register
from modegap.kernels.host import needs_grad
from modegap.kernels.threads import parallel, scratch, zeros

_VALUES = 2**18
_SPREAD = 2**19
"""Values of a sample from which threads pay."""


def _host(x: torch.Tensor, mask: torch.Tensor) -> str | None:
    fits = x.device.type == "cpu" and not needs_grad(x)
    return "fp32 row blocks on the host" if fits else None


@register("masked_mean", "cpu", supports=_host)
def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Per batch row: the span of kept positions as slices where it has no holes, gathered otherwise."""
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    width = x.shape[2]
    step = max(1, _VALUES // max(1, width))
    flags = mask.numpy()
    out = torch.empty((x.shape[0], width), dtype=torch.float32)

    def mean(b: int) -> None:
        kept = np.flatnonzero(flags[b])
        first, count = int(kept[0]), len(kept)
        whole = int(kept[-1]) - first + 1 == count
        index = torch.from_numpy(kept)
        total = zeros(width)
        for lo in range(0, count, step):
            hi = min(lo + step, count)
            rows = x[b, first + lo : first + hi] if whole else x[b].index_select(0, index[lo:hi])
            if rows.dtype is not dtype or not rows.is_contiguous():
                rows = scratch().get(f"masked_mean.{dtype}", (hi - lo, width), dtype).copy_(rows)
            total += rows.sum(0).double()
        out[b] = total.div_(count)

    parallel(mean, range(x.shape[0]), spread=x.shape[1] * width >= _SPREAD)
    return out
