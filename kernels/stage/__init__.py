"""Shift and cast of rows before a Gram update: `shift_of`, `stage`, `stage_and_sum`."""

from __future__ import annotations

import math

import torch

from modegap.kernels.check import floating, matrix
from modegap.kernels.dispatch import run

from . import cpu, reference  # noqa: F401  (they register themselves)
from .reference import exact_up_to

__all__ = ["exact_up_to", "shift_of", "stage", "stage_and_sum"]


def shift_of(pilot: torch.Tensor) -> torch.Tensor:
    """c_j = mean_j to std_j / 4, in as few bits as that takes, where |mean_j| > 2 std_j, else 0, over a pilot's rows.

    An uncentred Gram matrix loses a factor 1 + (mean/std)^2 of its precision; subtracting a constant close to
    the mean gives it back. c is an fp16 number, so that for c/2 <= x <= 2c the subtraction of an fp16 x is exact
    even in fp16 (Sterbenz, Floating-Point Computation, 1974), and its low bits are zero, so that it is exact for
    outliers too, up to `exact_up_to`. The few values near 0 of a channel with a mean of 2 to 8 std lose low
    bits of their own in fp16, to either side alike.

    Args:
        pilot: [n, d], floating, true values (scale applied); n >= 0.

    Returns:
        fp32 [d] on the pilot's device; 0 where the pilot has fewer than two rows. A mean beyond fp16's range
        is rounded to 11 significant bits.

    Raises:
        ValueError: the pilot is not a floating matrix.
    """
    matrix("pilot", pilot)
    floating("pilot", pilot)
    result: torch.Tensor = run("shift_of", __name__, pilot)[0]
    return result


def stage(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """out[:n] = x * scale - shift, with the cast to `out`'s dtype in the same pass.

    Args:
        x: [n, d] stored values, fp16, bf16, fp32 or fp64.
        shift: fp32 [d], in true units (after the scale).
        scale: a power of two; true value = stored value * scale, exact in fp32 and fp64.
        out: [>= n, d] on x's device: fp32 (precise) or fp64 (exact) on the host, also fp16 on a GPU.

    Bytes: reads x once, writes out once (host: 2 + 4 bytes a value, by cache-sized row blocks).

    Raises:
        ValueError: widths, devices or dtypes disagree, out is too short, or scale is not a power of two.
    """
    _check(x, shift, scale, out)
    run("stage", __name__, x, shift, scale, out)


def stage_and_sum(
    x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`stage`, returning also what a mean needs, without reading the rows again.

    Args:
        x: as in `stage`.
        shift: as in `stage`.
        scale: as in `stage`.
        out: as in `stage`.

    Returns:
        (column sums of out[:n], fp64 [d]; how many values were rounded, int64 []): the subtraction is exact
        where c/2 <= x <= 2c (Sterbenz), and what is counted is where it was not.

    Raises:
        ValueError: as `stage`.
    """
    _check(x, shift, scale, out)
    result: tuple[torch.Tensor, torch.Tensor] = run("stage_and_sum", __name__, x, shift, scale, out)[0]
    return result


def _check(x: torch.Tensor, shift: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    matrix("x", x)
    floating("x", x)
    matrix("out", out, width=x.shape[1])
    floating("out", out)
    if tuple(shift.shape) != (x.shape[1],):
        raise ValueError(f"shift: got shape {tuple(shift.shape)}, expected ({x.shape[1]},)")
    if out.shape[0] < x.shape[0]:
        raise ValueError(f"out: got {out.shape[0]} rows, expected at least {x.shape[0]}")
    if x.device != out.device or x.device != shift.device:
        raise ValueError(
            f"x, shift and out: got {x.device}, {shift.device}, {out.device}, expected one device"
        )
    if math.frexp(scale)[0] != 0.5:
        raise ValueError(f"scale: got {scale}, expected a power of two")
