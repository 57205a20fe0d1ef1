"""The oracle of `shift_of`, `stage` and `stage_and_sum`: their formulas in fp64."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register

RATIO = 2.0
"""|mean| / std above which a channel is shifted.

fp16 tensor cores round towards zero: a sum of squares is low by 4e-7, an unshifted variance by 1 + (mean / std)^2 times
that (1.9e-6 at 2, 3.4e-6 at 3, measured on an H100). A shift in fp16 rounds the values near 0 of a channel whose mean
is a few std: unbiased, up to 1.7e-4 / sqrt(n) of a covariance, nothing from 8 std on."""


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("shift_of", "reference", supports=_always)
def shift_of(pilot: torch.Tensor) -> torch.Tensor:
    """c = the mean in as few bits as std / 4 needs, where |mean| > 2 std, else 0; fp32 [d]."""
    n, d = pilot.shape
    if n < 2:
        return torch.zeros(d, dtype=torch.float32, device=pilot.device)
    std, mean = torch.std_mean(pilot.double(), dim=0)
    return shifted_by(mean, std)


def shifted_by(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The rule: fp32 [d] from fp64 means and deviations.

    c is the multiple of 2^floor(log2(std / 2)) next to the mean: at most std / 4 from it, and with zeros in its
    low bits, so that fp16 values up to a thousand such units are shifted exactly (`exact_up_to`). It has at most
    fp16's 11 significant bits, also where the mean is beyond fp16's range (rows in fp32, or scaled).
    """
    unit = torch.exp2(torch.floor(torch.log2(std / 2)))
    coarse = torch.where(unit > 0, (mean / unit).round() * unit, mean)
    mantissa, exponent = torch.frexp(torch.where(coarse.isfinite(), coarse, mean))
    narrow = torch.ldexp((mantissa * 2048).round() / 2048, exponent).float()
    half = narrow.half().float()
    shift = torch.where(half.isfinite(), half, narrow)
    use = (mean.abs() > RATIO * std) & shift.isfinite()
    return torch.where(use, shift, torch.zeros_like(shift))


def exact_up_to(shift: torch.Tensor) -> torch.Tensor:
    """Magnitudes of fp16 values x for which x - c loses no bit of c: fp32 [d], infinite where c is 0.

    Up to 2^10 times the lowest bit of c, x is a multiple of no coarser unit; up to 2 |c| the difference is exact
    where x has c's sign (Sterbenz). Beyond, every difference is rounded the same way.
    """
    mantissa, exponent = torch.frexp(shift.abs())
    whole = (mantissa * 2048).round().to(torch.int64)
    lowest = (whole & -whole).to(shift.dtype)
    unit = torch.ldexp(lowest, exponent - 11)
    limit = torch.maximum(unit * 1024, 2 * shift.abs())
    return torch.where(shift == 0, torch.full_like(limit, torch.inf), limit)


@register("stage", "reference", supports=_always)
def stage(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """out[:n] = x * scale - shift, rounded once."""
    out[: x.shape[0]] = (x.double() * scale - shift.double()).to(out.dtype)


@register("stage_and_sum", "reference", supports=_always)
def stage_and_sum(
    x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`stage`, its column sums, and how many values differ from fp64's."""
    exact = x.double() * scale - shift.double()
    rows = out[: x.shape[0]]
    rows.copy_(exact)
    return rows.sum(0, dtype=torch.float64), (rows != exact).sum()
