"""Host path of `shift_of` and `stage`: cache-sized row blocks, no temporary of the input's size."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register
from modegap.kernels.threads import one_thread, parallel, scratch

from .reference import shifted_by

_ROWS = 128
_STAGE_ROWS = 64


def _host(x: torch.Tensor, *_: object) -> str | None:
    return "cache-sized row blocks on the host" if x.device.type == "cpu" else None


@register("shift_of", "cpu", supports=_host)
def shift_of(pilot: torch.Tensor) -> torch.Tensor:
    """The oracle's rule with sums in fp32 about the first row: a mean rounded to fp16 needs no more."""
    if pilot.shape[0] < 2:
        return torch.zeros(pilot.shape[1], dtype=torch.float32)
    with one_thread():
        return _shift_of(pilot)


def _shift_of(pilot: torch.Tensor) -> torch.Tensor:
    n, d = pilot.shape
    wide = torch.float64 if pilot.dtype is torch.float64 else torch.float32
    origin = pilot[0].to(wide)
    total = torch.zeros(d, dtype=torch.float64)
    square = torch.zeros(d, dtype=torch.float64)
    for lo in range(0, n, _ROWS):
        block = pilot[lo : lo + _ROWS].to(wide) - origin
        total += block.sum(0)
        square += block.square_().sum(0)
    offset = total / n
    std = ((square - n * offset.square()).clamp_(min=0) / (n - 1)).sqrt_()
    return shifted_by(origin.double() + offset, std)


@register("stage", "cpu", supports=_host)
def stage(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """Row blocks of 64: cast, scale and shift while they are in cache."""
    narrow = out.dtype not in (torch.float32, torch.float64)
    moved = shift.float() if narrow else shift.to(out.dtype)
    by_float = out.dtype is torch.float64 and x.dtype in (torch.float16, torch.bfloat16)

    def block(lo: int) -> None:
        hi = min(lo + _STAGE_ROWS, x.shape[0])
        shape = (hi - lo, x.shape[1])
        part = scratch().get("stage", shape, torch.float32) if narrow else out[lo:hi]
        if by_float:  # torch casts fp16 to fp64 value by value, at a twelfth of the speed
            part.copy_(scratch().get("stage", shape, torch.float32).copy_(x[lo:hi]))
        else:
            part.copy_(x[lo:hi])
        if scale != 1.0:
            part.mul_(scale)
        part.sub_(moved)
        if narrow:
            out[lo:hi] = part

    parallel(block, range(0, x.shape[0], _STAGE_ROWS))
