"""Moments with the mean of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.batch import ActivationBatch
from modegap.kernels import Mode, cross_update

from .base import accumulates
from .blocks import Block
from .moments import Moments
from .result import ClassMomentsResult
from .side import Side


class ClassMoments(Moments):
    """`Moments` of the labelled rows, with counts and means by class.

    Class sums are a cross product of one-hot codes with the staged rows, in the arithmetic of `mode`.

    Args:
        labels: class of each sample, int [samples], in 0..n_classes-1; negative: leave the sample's rows out.
        n_classes: C.
        mode: as in Moments, and so are audit_columns, block_rows and seed.

    Raises:
        ValueError: a label is not below n_classes.
    """

    @accumulates
    def __init__(
        self,
        labels: Sequence[int] | NDArray[np.integer[Any]] | torch.Tensor,
        n_classes: int,
        mode: Mode = "precise",
        audit_columns: int = 64,
        *,
        block_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        """An identity: nothing seen."""
        super().__init__(mode, audit_columns, block_rows=block_rows, seed=seed)
        self.labels = torch.as_tensor(labels, dtype=torch.int64).cpu()
        self.n_classes = n_classes
        if self.labels.dim() != 1 or (len(self.labels) and int(self.labels.max()) >= n_classes):
            raise ValueError(f"labels: got values up to {int(self.labels.max())}, expected below {n_classes}")
        self._class_count = torch.zeros(n_classes, dtype=torch.int64)
        self._class_sum = torch.empty((n_classes, 0), dtype=torch.float64)

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "labels": self.labels, "n_classes": self.n_classes}

    @accumulates
    def update(self, batch: ActivationBatch) -> None:
        """Add the labelled rows of a batch.

        Raises:
            ValueError: the batch has no sample column, or as in Moments.
            EngineError: as in Moments; rows without a label are not looked at.
        """
        self._take(*self._labelled(batch))

    @accumulates
    def settle(self, batch: ActivationBatch) -> None:
        """As in Moments, of the labelled rows."""
        super().settle(self._labelled(batch)[0])

    def _labelled(self, batch: ActivationBatch) -> tuple[ActivationBatch, torch.Tensor]:
        """The rows with a label, and their classes."""
        if batch.sample is None:
            raise ValueError("sample: got None, expected the sample index of each row (stream() provides it)")
        sample = batch.sample.cpu()
        if len(sample) and int(sample.max()) >= len(self.labels):
            raise ValueError(
                f"sample: got index {int(sample.max())}, expected below {len(self.labels)} labels"
            )
        codes = self.labels[sample]
        kept = torch.nonzero(codes >= 0).squeeze(1)
        if len(kept) < len(codes):
            batch = replace(
                batch,
                x=batch.x.index_select(0, kept.to(batch.x.device)),
                sample=sample[kept],
                position=None,
                modality=None,
                row=kept + batch.start if batch.row is None else batch.row[kept],
                stop=batch.end,
                magnitudes=None,
            )
            codes = codes[kept]
        return batch, codes

    def _allocate(self, width: int, device: torch.device) -> None:
        super()._allocate(width, device)
        if self._class_sum.shape[1] != width:
            self._class_sum = torch.zeros((self.n_classes, width), dtype=torch.float64, device=device)
        self._class_sum = self._class_sum.to(device)

    def _absorb(self, block: Block) -> torch.Tensor:
        rows = super()._absorb(block)
        assert block.codes is not None
        n = len(rows)
        member = torch.zeros((self.n_classes, n), dtype=rows.dtype)
        member[block.codes, torch.arange(n)] = 1.0
        member = member.to(rows.device)
        self._note(cross_update(member.T, rows, self._class_sum, mode=self.mode, workspace=self._workspace))
        self._class_count += torch.bincount(block.codes, minlength=self.n_classes)
        return rows

    @accumulates
    def merge(self, other: Self) -> Self:
        """As in Moments; the labels must be equal."""
        if not torch.equal(self.labels, other.labels) or self.n_classes != other.n_classes:
            raise ValueError("merge: the labels differ, expected the same; create workers with fresh()")
        return super().merge(other)

    def _add_side(self, other: Self, theirs: Side, delta: torch.Tensor | None) -> None:
        super()._add_side(other, theirs, delta)
        if theirs.count:
            moved = other._class_sum.to(theirs.total.device)
            if delta is not None:
                moved = moved + other._class_count.to(moved.device)[:, None] * delta
            self._class_sum = self._class_sum + moved
            self._class_count = self._class_count + other._class_count

    @accumulates
    def finalize(self) -> ClassMomentsResult:
        """Moments and class means; takes over the accumulators. Raises as Moments."""
        parts = self._finish()
        assert self._side.shift is not None
        count = self._class_count.to(self._class_sum.device)
        means = self._side.shift.double() + self._class_sum / count[:, None]
        return ClassMomentsResult(**parts, class_count=count, class_mean=means)

    def state_dict(self) -> dict[str, Any]:
        """As in Moments, with the class sums."""
        return {**super().state_dict(), "class_count": self._class_count, "class_sum": self._class_sum}

    @accumulates
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As in Moments.

        Raises:
            ValueError: other options, or another number of classes.
        """
        if len(state["class_count"]) != self.n_classes:
            raise ValueError(
                f"state_dict: got {len(state['class_count'])} classes, expected {self.n_classes}"
            )
        super().load_state_dict(state)
        self._class_count = state["class_count"].clone()
        self._class_sum = state["class_sum"].clone()
