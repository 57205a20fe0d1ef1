"""The conformance suite of the Reduction protocol; use it for reductions of your own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .batch import ActivationBatch
from .reduction import Reduction

_NOT_NUMBERS = ("certificate", "audit_error", "audit_columns")


def check_reduction(
    factory: Callable[[], Reduction[Any, Any]],
    batches: Sequence[ActivationBatch],
    *,
    rtol: float = 1e-10,
    atol: float = 1e-12,
    split: Callable[[Any], Sequence[Any]] | None = None,
    bitwise_split: bool = False,
) -> None:
    """Check that a reduction is a commutative monoid over `batches` (at least three, of any length).

    Checked: an identity merges to nothing on either side; merging is associative and commutative; any split
    of the rows into batches gives the same result; a state survives its round trip and continues; `merge`
    leaves its argument as it was; `fresh` has seen nothing.

    Args:
        factory: makes an instance that has seen nothing.
        batches: rows; fp16 or fp32 batches of one point.
        rtol: relative tolerance, by the largest magnitude of each array of the result.
        atol: absolute tolerance.
        split: cuts a batch into several; by default an ActivationBatch into three.
        bitwise_split: demand that splits give the same bits.

    Raises:
        AssertionError: a law does not hold; the message names it.
    """
    if len(batches) < 3:
        raise ValueError(f"batches: got {len(batches)}, expected at least 3")
    cut = split or _thirds

    def over(parts: Sequence[Any], into: Reduction[Any, Any] | None = None) -> Reduction[Any, Any]:
        reduction = factory() if into is None else into
        for part in parts:
            reduction.update(part)
        return reduction

    def same(law: str, found: Reduction[Any, Any], *, exact: bool = False) -> None:
        _compare(law, numbers(found.finalize()), whole, 0.0 if exact else rtol, 0.0 if exact else atol)

    whole = numbers(over(batches).finalize())
    third = max(len(batches) // 3, 1)
    parts = (batches[:third], batches[third : 2 * third], batches[2 * third :])

    pieces = [piece for batch in batches for piece in cut(batch)]
    same("split invariance", over(pieces), exact=bitwise_split)
    same("left identity", factory().merge(over(batches)))
    same("right identity", over(batches).merge(factory()))
    same("fresh is an identity", over(batches).merge(over(batches).fresh()))
    same("merge", over(parts[0]).merge(over(parts[1])).merge(over(parts[2])))
    same("associativity", over(parts[0]).merge(over(parts[1]).merge(over(parts[2]))))
    same("commutativity", over(parts[2]).merge(over(parts[1])).merge(over(parts[0])))

    other = over(parts[1])
    over(parts[0]).merge(other)
    same("merge leaves its argument as it was", over(parts[0]).merge(other).merge(over(parts[2])))

    half = over(pieces[: len(pieces) // 2])
    state = _copied(half.state_dict())
    resumed = factory()
    resumed.load_state_dict(state)
    same("state round trip", over(pieces[len(pieces) // 2 :], resumed), exact=bitwise_split)
    over(pieces[len(pieces) // 2 :], half)
    same("state_dict leaves the reduction usable", half, exact=bitwise_split)


def numbers(result: Any) -> dict[str, np.ndarray]:
    """The arrays and numbers of a result (dataclass, tuple, mapping, tensor), by name, as fp64 numpy."""
    out: dict[str, np.ndarray] = {}
    _collect(result, "", out)
    return out


def _collect(value: Any, name: str, out: dict[str, np.ndarray]) -> None:
    if isinstance(value, torch.Tensor):
        out[name] = value.detach().cpu().double().numpy()
    elif isinstance(value, (np.ndarray, int, float)):
        out[name] = np.asarray(value, dtype=np.float64)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            if f.name not in _NOT_NUMBERS:
                _collect(getattr(value, f.name), f"{name}.{f.name}", out)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _collect(part, f"{name}.{key}", out)
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            _collect(part, f"{name}[{i}]", out)


def _compare(
    law: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], rtol: float, atol: float
) -> None:
    if found.keys() != expected.keys():
        raise AssertionError(f"{law}: got fields {sorted(found)}, expected {sorted(expected)}")
    for name, want in expected.items():
        have = found[name]
        if have.shape != want.shape:
            raise AssertionError(f"{law}: {name} has shape {have.shape}, expected {want.shape}")
        blank = np.isnan(want)
        if not np.array_equal(np.isnan(have), blank):
            raise AssertionError(f"{law}: {name} has NaN in other places")
        if want[~blank].size == 0:
            continue
        gap = float(np.abs(have - want)[~blank].max())
        limit = atol + rtol * float(np.abs(want[~blank]).max())
        if gap > limit:
            raise AssertionError(f"{law}: {name} differs by {gap:.3g}, expected at most {limit:.3g}")


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _copied(value)
        if isinstance(value, Mapping)
        else value.clone()
        if torch.is_tensor(value)
        else value.copy()
        for name, value in state.items()
    }


def _thirds(batch: ActivationBatch) -> list[ActivationBatch]:
    n = len(batch)
    edges = sorted({0, n // 3, (2 * n) // 3, n})
    out = []
    for lo, hi in pairwise(edges):
        columns: dict[str, Any] = {
            name: None if getattr(batch, name) is None else getattr(batch, name)[lo:hi]
            for name in ("sample", "position", "modality", "row")
        }
        out.append(
            replace(batch, x=batch.x[lo:hi], start=batch.start + lo, stop=None, magnitudes=None, **columns)
        )
    return out
