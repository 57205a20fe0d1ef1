"""Checks of values are made once per tensor and version; sums beside staging."""

from __future__ import annotations

import pytest
import torch

from modegap import kernels
from modegap.kernels.check import once


def test_values_are_examined_again_only_after_a_change() -> None:
    x = torch.zeros(3)
    seen: list[int] = []

    def examine() -> None:
        seen.append(len(seen))

    for _ in range(3):
        once(x, "rows", examine)
    assert len(seen) == 1
    once(x, "columns", examine)
    assert len(seen) == 2
    x[0] = 1.0
    once(x, "columns", examine)
    assert len(seen) == 3


def test_what_failed_is_examined_again() -> None:
    x = torch.zeros(3)

    def refuse() -> None:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            once(x, "rows", refuse)


def test_tensors_of_inference_mode_are_always_examined() -> None:
    with torch.inference_mode():
        mask = torch.ones(2, 5, dtype=torch.bool)
        x = torch.randn(2, 5, 4)
        kernels.masked_mean(x, mask)
        mask[1] = False
        with pytest.raises(ValueError, match="row 1"):
            kernels.masked_mean(x, mask)


def test_a_mask_or_bounds_changed_in_place_are_found() -> None:
    x, mask, ends = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool), torch.tensor([0, 5, 10])
    kernels.masked_mean(x, mask)
    kernels.gradient_norms(x.view(10, 4), ends)
    mask[0] = False
    ends[1] = 0
    with pytest.raises(ValueError, match="row 0"):
        kernels.masked_mean(x, mask)
    with pytest.raises(ValueError, match="sample 0"):
        kernels.gradient_norms(x.view(10, 4), ends)


def test_bounds_hold_for_the_rows_they_were_checked_with() -> None:
    g, ends = torch.randn(10, 4), torch.tensor([0, 5, 10])
    kernels.gradient_norms(g, ends)
    with pytest.raises(ValueError, match=r"expected \(0, 9\)"):
        kernels.gradient_norms(g[:9], ends)


def test_sums_beside_staging() -> None:
    x = (torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) + 50.0).half()
    shift = torch.full((7,), 50.0)
    out = torch.full((302, 7), float("nan"))
    sums, rounded = kernels.stage_and_sum(x, shift, 2.0, out)
    exact = x.double() * 2.0 - 50.0
    assert torch.equal(out[:300].double(), exact)
    assert out[300:].isnan().all()
    assert torch.allclose(sums, exact.sum(0), rtol=1e-12)
    assert int(rounded) == 0
    half = torch.empty(300, 7, dtype=torch.float16)
    uneven = torch.full((7,), 0.01)
    _, rounded = kernels.stage_and_sum(x, uneven, 1.0, half)
    assert int(rounded) == int((half.double() != x.double() - uneven.double()).sum()) > 0
    with pytest.raises(ValueError, match="shift"):
        kernels.stage_and_sum(x, shift[:3], 1.0, half)
