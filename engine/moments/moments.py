"""Mean and covariance of streamed rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.errors import ValuesError
from modegap.kernels import Mode, covariance_update, one_thread

from .audit import Audit, audit_error, audited
from .base import BlockReduction, accumulates, too_few
from .blocks import Block, BlockBuffer, placed
from .result import MomentsResult
from .shifted import finish, move_lower
from .side import Side


class Moments(BlockReduction[MomentsResult]):
    """Count, mean and covariance (ddof 1) of rows, accumulated in fp64, with an fp64 audit.

    Rows are collected into blocks; a block is shifted by a constant chosen from the first block (`shift_of`),
    multiplied in the arithmetic of `mode`, and added to an fp64 lower triangle.

    Accuracy, mode precise: |dS_ij| <= 3e-6 sqrt(S_ii S_jj), mean signed relative error of the variances
    within 1e-6, and worst relative eigenvalue error <= 5e-6 where the spectrum is graded by channel. Where it
    is graded by a rotation, small eigenvalues inherit 1e-6 of the large ones: take mode exact (fp64
    throughout) for those.

    Invariance: any split of the rows into batches gives the same bits. Merging agrees with one pass to 1e-10
    in mode exact, and in mode precise where the parts begin on block boundaries and share their shift
    (workers made with `fresh()` after the first block, or no channel with |mean| > 2 std); other partitions
    group the fp32 products differently, so they agree within the accuracy above and cannot do better.

    Memory: fp64 [d, d] and three blocks (d = 4096, host: 134 MB + 85 MB). `finalize` works in place.

    Args:
        mode: "precise", "fast" (on a GPU: longer fp32 chains) or "exact".
        audit_columns: channels accumulated in fp64 alongside; 0 for none.
        block_rows: see BlockReduction.
        seed: of the choice of audited channels.
    """

    @accumulates
    def __init__(
        self, mode: Mode = "precise", audit_columns: int = 64, *, block_rows: int | None = None, seed: int = 0
    ) -> None:
        """An identity: nothing seen."""
        super().__init__(mode, block_rows, seed)
        if audit_columns < 0:
            raise ValueError(f"audit_columns: got {audit_columns}, expected at least 0")
        self.audit_columns = audit_columns
        self._side = Side(mode)
        self._rows: BlockBuffer | None = None
        self._gram = torch.empty((0, 0), dtype=torch.float64)
        self._audit = Audit()
        self._index = torch.empty(0, dtype=torch.int64)
        self._audited_of = (torch.empty(0), torch.empty(0, dtype=torch.float64))  # a shift, and its part

    @accumulates
    def fresh(self) -> Self:
        """An identity with the same options, and the same shift where it is known."""
        new = type(self)(**self._options())
        new._side = self._side.fresh()
        return new

    def _options(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "audit_columns": self.audit_columns,
            "block_rows": self._block_rows,
            "seed": self.seed,
        }

    @accumulates
    def update(self, batch: ActivationBatch) -> None:
        """Add rows.

        Raises:
            ValueError: point, width, dtype or device differ from earlier batches.
            EngineError: a value is NaN or infinite (point and row are named; nothing was added), or the
                reduction is finalized.
        """
        self._take(batch, None)

    @accumulates
    def settle(self, batch: ActivationBatch) -> None:
        """Take the first rows for what `fresh` hands on, the shift, and for nothing else: a tenth of an update's time.

        Afterwards this one is good for `fresh` and for the size of its state only. Raises as `update`.
        """
        self._open()
        self._side.admit(batch)
        if self._rows is None:
            self._rows = self._buffer(batch.x.device)
        for block in self._rows.push(batch.x, batch.scale):
            self._side.settle(block)
            self._allocate(batch.width, block.x.device)

    def _take(self, batch: ActivationBatch, codes: torch.Tensor | None) -> None:
        self._open()
        peak = self._side.admit(batch)
        self._push(batch.x, batch.scale, codes, peak.host)

    def _push(
        self, x: torch.Tensor, scale: float, codes: torch.Tensor | None, peak: torch.Tensor | None = None
    ) -> None:
        if self._rows is None:
            self._rows = self._buffer(x.device)
        for block in self._rows.push(x, scale, codes, peak):
            self._absorb(block)

    def _absorb(self, block: Block) -> torch.Tensor:
        rows = self._side.stage(block, self._workspace, "rows")
        self._allocate(rows.shape[1], rows.device)
        path = covariance_update(rows, self._gram, mode=self.mode, workspace=self._workspace)
        self._note(path)
        if len(self._index):
            index = self._index = placed(self._index, rows.device)
            with one_thread():
                self._audit.add(block.columns(index), self._audit_shift(index))
        return rows

    def _audit_shift(self, index: torch.Tensor) -> torch.Tensor:
        """The audited channels' shift, fp64, taken out of the shift once."""
        shift = self._side.shift
        assert shift is not None
        if self._audited_of[0] is not shift:
            self._audited_of = shift, shift[index].double()
        return self._audited_of[1]

    def _allocate(self, width: int, device: torch.device) -> None:
        if len(self._gram) != width:
            self._gram = torch.zeros((width, width), dtype=torch.float64, device=device)
        self._gram = placed(self._gram, device)
        if not len(self._index):
            self._index = audited(width, self.audit_columns, self.seed)

    @accumulates
    def merge(self, other: Self) -> Self:
        """Add the rows of `other`, which stays as it was, and return self.

        Raises:
            ValueError: other options or width.
        """
        self._check_mergeable(other, "audit_columns")
        device = self._gram.device if len(self._gram) else other._gram.device
        theirs = other._side.to(device)
        delta = self._side.delta(theirs)
        if theirs.count:
            self._allocate(theirs.width, device)
            move_lower(self._gram, other._gram, theirs.total, theirs.count, delta)
            columns = None if delta is None else delta[self._index.to(device)]
            self._audit.merge(other._audit, theirs.count, columns)
        self._add_side(other, theirs, delta)
        if other._rows is not None and len(other._rows):
            held = other._rows.partial().to(device)
            for part, scale in held.parts():
                self._push(held.x[part], scale, None if held.codes is None else held.codes[part])
        for path in other._paths.values():
            self._note(path)
        return self

    def _add_side(self, other: Self, theirs: Side, delta: torch.Tensor | None) -> None:
        self._side.add(theirs, delta)

    @accumulates
    def finalize(self) -> MomentsResult:
        """Mean and covariance; takes over the accumulators.

        Raises:
            EngineError: fewer than two rows, or finalized before.
            ValuesError: the squares of the values overflow this mode's arithmetic.
        """
        return MomentsResult(**self._finish())

    def _finish(self) -> dict[str, Any]:
        self._open()
        if self._rows is not None and len(self._rows):
            self._absorb(self._rows.partial())
        if self._rows is not None:
            self._rows.clear()
        side = self._side
        if side.count < 2:
            raise too_few(side.point, side.count)
        self._spend()
        covariance = finish(self._gram, side.total, side.count)
        if not bool(covariance.diagonal().isfinite().all()):
            raise ValuesError(_overflowing(side, self.mode))
        index = self._index.to(covariance.device)
        with one_thread():  # small operations: torch's threads would cost more than they save
            audit = self._compared(covariance, index) if len(index) else None
        self._gram = torch.empty((0, 0), dtype=torch.float64)
        return {
            "count": side.count,
            "mean": side.mean(),
            "covariance": covariance,
            "absmax": side.absmax,
            "overflow_count": side.overflow,
            "audit_error": audit,
            "audit_columns": index,
            "certificate": Certificate(
                mode=self.mode,
                kernel_paths=path_facts(self._paths.values()),
                count=side.count,
                width=side.width,
                overflow_count=side.overflow,
                audit_error=audit,
            ),
        }

    def _compared(self, covariance: torch.Tensor, index: torch.Tensor) -> float:
        exact = self._audit.covariance(self._side.count)
        spread = exact.diagonal()
        return audit_error(covariance[index][:, index], spread, spread, exact)

    def state_dict(self) -> dict[str, Any]:
        """Everything seen, as tensors that share memory with the reduction: save or clone them at once."""
        self._open()
        rows = self._rows or BlockBuffer(1)
        return {
            "config": self._config(self.audit_columns),
            "side": self._side.state_dict(),
            "gram": self._gram,
            "audit": self._audit.state_dict(),
            "rows": rows.state_dict(),
        }

    @accumulates
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; the bits of the result are those of an uninterrupted pass.

        Raises:
            ValueError: it was saved by a reduction with other options.
        """
        self._open()
        self._load_config(state["config"], self.audit_columns)
        self._side.load_state_dict(state["side"])
        self._gram = state["gram"].clone()
        self._audit.load_state_dict(state["audit"])
        self._index = audited(len(self._gram), self.audit_columns, self.seed)
        self._rows = None
        if len(state["rows"]["x"]):
            self._rows = self._buffer(state["rows"]["x"].device)
            self._rows.load_state_dict(state["rows"], state["rows"]["x"].device)


def _overflowing(side: Side, mode: Mode) -> str:
    remedy = "leave out the samples that hold them (samples=...)"
    if mode != "exact":
        remedy = f"take mode='exact' (`modegap cov --mode exact`), or {remedy}"
    largest = float(side.absmax.max())
    return f"{side.point or 'the rows'}: values up to {largest:.3g}, whose squares overflow in mode {mode}; {remedy}"
