"""Argument checks shared by the operations: ValueError with what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch.utils.weak import WeakIdKeyDictionary

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def matrix(name: str, x: torch.Tensor, *, width: int | None = None, rows: int | None = None) -> None:
    """Raise ValueError unless `x` is a matrix of that width and number of rows."""
    if (
        x.dim() != 2
        or (width is not None and x.shape[1] != width)
        or (rows is not None and x.shape[0] != rows)
    ):
        expected = f"[{'n' if rows is None else rows}, {'d' if width is None else width}]"
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {expected}")


def floating(name: str, x: torch.Tensor) -> None:
    """Raise ValueError unless `x` is fp16, bf16, fp32 or fp64."""
    if x.dtype not in _FLOATING:
        raise ValueError(f"{name}: got {x.dtype}, expected float16, bfloat16, float32 or float64")


def float64(name: str, x: torch.Tensor) -> None:
    """Raise ValueError unless `x` is fp64."""
    if x.dtype is not torch.float64:
        raise ValueError(f"{name}: got {x.dtype}, expected float64")


def same_device(**tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors are on one device."""
    if len({t.device for t in tensors.values()}) > 1:
        got = ", ".join(f"{name} on {t.device}" for name, t in tensors.items())
        raise ValueError(f"got {got}; expected one device")


_passed: WeakIdKeyDictionary = WeakIdKeyDictionary()


def version(x: torch.Tensor) -> int | None:
    """How often `x` was written in place; None where torch does not count (tensors of inference mode)."""
    return None if x.is_inference() else x._version


def once(x: torch.Tensor, what: Hashable, examine: Callable[[], None]) -> None:
    """Call `examine` unless `x`, unchanged since, has passed it before as `what`.

    A check of a tensor's values waits for the GPU (some 50 microseconds, and the queue in front); masks, run
    bounds and bases are used many times over.
    """
    now = version(x)
    if now is not None and _passed.get(x) == (now, what):  # type: ignore[no-untyped-call]
        return
    examine()
    if now is not None:
        _passed[x] = (now, what)
