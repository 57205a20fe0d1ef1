"""Means of random Fourier features: kernel mean embeddings of all rows in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from modegap.engine.batch import ActivationBatch


@dataclass(frozen=True, slots=True, eq=False)
class FourierResult:
    """Rows n, and the sum of the features of all rows, fp64 [2F]."""

    count: int
    total: torch.Tensor


class FourierFeatures:
    """sum_i phi(x_i), phi(x) = sqrt(1/F) [cos(w_f'(x - c)), sin(w_f'(x - c))]: phi(x)'phi(y) has the mean k(x, y).

    With w_f from the normal law of variance 1 / sigma^2, k is exp(-|x - y|^2 / (2 sigma^2)) and |phi(x)| = 1
    (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007). The shift c changes no
    inner product; it keeps the phases small, so that fp32 is enough.

    Args:
        frequencies: W [d, F].
        shift: c [d].
    """

    def __init__(self, frequencies: torch.Tensor, shift: torch.Tensor) -> None:
        """Nothing seen."""
        self._frequencies, self._shift = frequencies.float(), shift.float()
        self._count = 0
        self._total = torch.zeros(2 * frequencies.shape[1], dtype=torch.float64)

    def fresh(self) -> Self:
        """Nothing seen, of the same frequencies."""
        return type(self)(self._frequencies, self._shift)

    def update(self, batch: ActivationBatch) -> None:
        """Add the features of the rows of one batch."""
        if self._frequencies.device != batch.x.device:
            self._frequencies = self._frequencies.to(batch.x.device)
            self._shift = self._shift.to(batch.x.device)
        phase = batch.values().sub_(self._shift) @ self._frequencies
        sums = torch.cat([phase.cos().sum(0, dtype=torch.float64), phase.sin_().sum(0, dtype=torch.float64)])
        self._total = self._total + sums.cpu() / self._frequencies.shape[1] ** 0.5
        self._count += len(batch)

    def merge(self, other: Self) -> Self:
        """This reduction with the rows of `other` added."""
        self._count += other._count
        self._total = self._total + other._total
        return self

    def finalize(self) -> FourierResult:
        """Count and sum of the features."""
        return FourierResult(self._count, self._total)

    def state_dict(self) -> dict[str, Any]:
        """The accumulators, as tensors."""
        return {"count": torch.tensor(self._count), "total": self._total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._count, self._total = int(state["count"]), state["total"].clone()
