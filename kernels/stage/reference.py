"""The oracle of `shift_of`, `stage` and `stage_and_sum`: their formulas in fp64."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register

RATIO = 3.0
"""|mean| / std above which a channel is shifted."""


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("shift_of", "reference", supports=_always)
def shift_of(pilot: torch.Tensor) -> torch.Tensor:
    """c = fp16(mean) where |mean| > 3 std, else 0; fp32 [d]."""
    n, d = pilot.shape
    if n < 2:
        return torch.zeros(d, dtype=torch.float32, device=pilot.device)
    std, mean = torch.std_mean(pilot.double(), dim=0)
    return shifted_by(mean, std)


def shifted_by(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """The rule: fp32 [d] from fp64 means and deviations.

    A mean beyond fp16 (rows in fp32, or scaled) is rounded to fp16's 11 significant bits instead.
    """
    mantissa, exponent = torch.frexp(mean)
    narrow = torch.ldexp((mantissa * 2048).round() / 2048, exponent).float()
    half = mean.half().float()
    shift = torch.where(half.isfinite(), half, narrow)
    use = (mean.abs() > RATIO * std) & shift.isfinite()
    return torch.where(use, shift, torch.zeros_like(shift))


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
