"""A matrix as the sum of two half-precision ones: tensor cores then multiply almost as in fp32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..check import version

SCALE = 64.0
"""Orthonormal columns are multiplied by this before the cut: the low part is then not subnormal in fp16."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """high + low = scale * U to 2^-22 of the largest entry, [d, columns]; columns beyond U's are zero."""

    high: torch.Tensor
    low: torch.Tensor
    scale: float | torch.Tensor


_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()


def split(
    U: torch.Tensor,
    dtype: torch.dtype,
    columns: int,
    *,
    scale: float | None = None,
    transposed: bool = False,
) -> Split:
    """`U` [d, K] cut for products with rows of `dtype`, padded to `columns`; kept while U lives unchanged.

    For fp32 rows, high is U in fp32 and low is not used. Without a scale, a power of two is found on the
    device (a tensor) that brings the largest entry near 64. `transposed` parts are [columns, d].
    """
    key = (version(U), dtype, columns, scale, transposed)
    held = _kept.get(U)  # type: ignore[no-untyped-call]
    if held is not None and held[0] == key and key[0] is not None:
        cut: Split = held[1]
        return cut
    wide = U.detach().double()
    factor: float | torch.Tensor = 1.0
    if dtype is not torch.float32:
        factor = scale if scale is not None else _scale(wide)
    wide = wide * factor
    high = torch.zeros((U.shape[0], columns), dtype=dtype, device=U.device)
    low = torch.zeros_like(high)
    high[:, : U.shape[1]] = wide.to(dtype)
    low[:, : U.shape[1]] = (wide - high[:, : U.shape[1]].double()).to(dtype)
    if transposed:
        high, low = high.T.contiguous(), low.T.contiguous()
    cut = Split(high, low, factor)
    if key[0] is not None:
        _kept[U] = (key, cut)
    return cut


def _scale(U: torch.Tensor) -> torch.Tensor:
    if not U.numel():
        return torch.ones((), dtype=torch.float64, device=U.device)
    largest = U.abs().amax().clamp_min(1e-300)
    return torch.exp2(torch.floor(math.log2(SCALE) - torch.log2(largest)))
