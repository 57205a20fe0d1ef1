"""What goes from process to process arrives as it was, whether it lay on a device or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import Moments
from modegap.engine.parallel import exchange

HOST = torch.device("cpu")


def passed(value: Any) -> tuple[Any, list[torch.Tensor]]:
    """The value as another process has it, and what was sent."""
    sent = exchange._message(value, HOST)
    waiting = iter(sent)

    def fill(tensor: torch.Tensor) -> None:
        came = next(waiting)
        assert (tensor.dtype, tensor.shape) == (came.dtype, came.shape)
        tensor.copy_(came)

    found = exchange._assembled(HOST, fill)
    assert next(waiting, None) is None, "something was sent that nobody took"
    return found, sent


@pytest.fixture(params=["host", "device"])
def placed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tensors as on the host, or taken as if they lay on a device."""
    if request.param == "device":
        there: Callable[[Any], bool] = lambda value: isinstance(value, torch.Tensor)  # noqa: E731
        monkeypatch.setattr(exchange, "_there", there)
    return str(request.param)


def test_values_of_many_kinds(placed: str) -> None:
    value = {
        "large": torch.arange(40_000.0, dtype=torch.float64).reshape(200, 200),
        "not contiguous": torch.arange(60_000).reshape(3, -1).T,
        "odd": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(5).bfloat16(),
        "number": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "array": np.arange(30_000)[::-1],
        "few": np.arange(3),
        "words": ["a", None, ValueError("x")],
    }
    found, sent = passed(value)
    assert len(sent) == 2 + 3 + (placed == "device")  # small ones of a device are one
    assert found.keys() == value.keys()
    assert str(found["words"][2]) == "x"
    for name, one in value.items():
        if isinstance(one, torch.Tensor):
            assert (found[name].dtype, found[name].shape) == (one.dtype, one.shape)
            assert torch.equal(found[name], one)
        elif isinstance(one, np.ndarray):
            assert np.array_equal(found[name], one)


def test_a_reduction_goes_on_where_it_arrives(placed: str) -> None:
    def batch(seed: int) -> ActivationBatch:
        torch.manual_seed(seed)
        return ActivationBatch((torch.randn(300, 96) + 5).half(), 300 * seed, "p")

    here = Moments(block_rows=128)
    here.update(batch(0))
    there, _ = passed(here)
    for one in (here, there):
        one.update(batch(1))
    assert torch.equal(there.finalize().covariance, here.finalize().covariance)


def test_nothing_but_words(placed: str) -> None:
    assert passed((None, 3))[0] == (None, 3)
    assert passed(torch.empty(0))[0].shape == (0,)
