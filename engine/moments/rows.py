"""Reductions that keep something of every row: a sample of the rows, or their projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from modegap.engine.batch import ActivationBatch


@dataclass(frozen=True, slots=True, eq=False)
class RowValues:
    """Values by row: global row indices int64 [n], ascending, and values [n, k] on the host."""

    row: torch.Tensor
    values: torch.Tensor


class _ByRow:
    """Pieces of (global rows, values) whose order does not matter until the end."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self._width, self._dtype = width, dtype
        self._rows: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def _add(self, row: torch.Tensor, values: torch.Tensor) -> None:
        if len(row):
            self._rows.append(row)
            self._values.append(values)

    def merge(self, other: Self) -> Self:
        """This reduction with the rows of `other` added."""
        self._rows = self._rows + other._rows
        self._values = self._values + other._values
        return self

    def finalize(self) -> RowValues:
        """The values in the order of the rows."""
        row, values = self._joined()
        order = torch.argsort(row)
        return RowValues(row[order], values[order])

    def state_dict(self) -> dict[str, Any]:
        """Everything kept, as two tensors."""
        row, values = self._joined()
        return {"row": row, "values": values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._rows, self._values = [], []
        self._add(state["row"].clone(), state["values"].clone())

    def _joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._rows:
            return torch.empty(0, dtype=torch.int64), torch.empty((0, self._width), dtype=self._dtype)
        return torch.cat(self._rows), torch.cat(self._values)


class RowSample(_ByRow):
    """The true values of chosen rows, fp64: one pass that runs anyway reads and verifies them on the way.

    Memory: 8 bytes a value kept.

    Args:
        wanted: global row indices, int64, ascending and without repeats.
        width: d.
        basis: keep (x - shift)'basis instead of x; fp64 [d, k].
        shift: fp64 [d], with a basis.

    Raises:
        ValueError: indices that are not ascending, or a basis without a shift.
    """

    def __init__(
        self,
        wanted: torch.Tensor,
        width: int,
        basis: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> None:
        """Nothing seen."""
        super().__init__(width if basis is None else basis.shape[1], torch.float64)
        if wanted.dim() != 1 or (wanted[1:] <= wanted[:-1]).any():
            raise ValueError("wanted: expected ascending row indices without repeats")
        if (basis is None) != (shift is None):
            raise ValueError("basis, shift: got one of the two, expected both or neither")
        self._wanted, self._given = wanted.to(torch.int64), width
        self._basis, self._shift = basis, shift

    def fresh(self) -> Self:
        """Nothing seen, of the same choice."""
        return type(self)(self._wanted, self._given, self._basis, self._shift)

    def update(self, batch: ActivationBatch) -> None:
        """Keep the batch's chosen rows."""
        if batch.row is None:
            first, last = torch.searchsorted(
                self._wanted, torch.tensor([batch.start, batch.start + len(batch)])
            ).tolist()
            row = self._wanted[first:last]
            index = row - batch.start
        else:
            index = torch.isin(batch.row, self._wanted).nonzero()[:, 0]
            row = batch.row[index]
        if len(index):
            values = batch.x[index.to(batch.x.device)].double().mul_(batch.scale).cpu()
            if self._basis is not None and self._shift is not None:
                values = values.sub_(self._shift) @ self._basis
            self._add(row, values)


class Projections(_ByRow):
    """(x_i - shift)'v_k of every row i, fp32.

    Memory: 4 K bytes a row for K directions.

    Args:
        directions: V [d, K].
        shift: [d], subtracted in fp32 first, so that a mean much larger than the spread cancels nothing.
    """

    def __init__(self, directions: torch.Tensor, shift: torch.Tensor) -> None:
        """Nothing seen."""
        super().__init__(directions.shape[1], torch.float32)
        self._directions, self._shift = directions.float(), shift.float()

    def fresh(self) -> Self:
        """Nothing seen, of the same directions."""
        return type(self)(self._directions, self._shift)

    def update(self, batch: ActivationBatch) -> None:
        """Project the rows of one batch."""
        if self._directions.device != batch.x.device:
            self._directions = self._directions.to(batch.x.device)
            self._shift = self._shift.to(batch.x.device)
        values = (batch.values().sub_(self._shift) @ self._directions).cpu()
        row = torch.arange(batch.start, batch.start + len(batch)) if batch.row is None else batch.row.clone()
        self._add(row, values)
