"""Cross-covariance of the same rows at two points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from modegap.engine.batch import PairedBatch
from modegap.engine.certificate import Certificate, path_facts
from modegap.kernels import Mode, cross_update, one_thread

from .audit import Audit, audit_error, audited
from .base import BlockReduction, accumulates, too_few
from .blocks import Block, BlockBuffer
from .result import CrossMomentsResult
from .shifted import add_outer
from .side import Side

_SIDES = ("x", "y")
_ROWS = 256


class CrossMoments(BlockReduction[CrossMomentsResult]):
    """Means and cross-covariance (ddof 1) of x at one point and y at another.

    Accuracy and invariance as in Moments.

    Memory: fp64 [p, q] and two blocks of each point.

    Args:
        mode: as in Moments, and so are block_rows and seed.
        audit_columns: channels of each point that are accumulated in fp64 alongside.
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
        self._sides = (Side(mode), Side(mode))
        self._rows: tuple[BlockBuffer, BlockBuffer] | None = None
        self._gram = torch.empty((0, 0), dtype=torch.float64)
        self._audit = Audit()

    @accumulates
    def fresh(self) -> Self:
        """An identity with the same options, and the same shifts where they are known."""
        new = type(self)(self.mode, self.audit_columns, block_rows=self._block_rows, seed=self.seed)
        new._sides = (self._sides[0].fresh(), self._sides[1].fresh())
        return new

    @accumulates
    def update(self, batch: PairedBatch) -> None:
        """Add pairs of rows.

        Raises:
            ValueError: point, width, dtype or device of a side differ from earlier batches.
            EngineError: a value is NaN or infinite, or the reduction is finalized.
        """
        self._open()
        pairs = list(zip(self._sides, (batch.x, batch.y), strict=True))
        peaks = [side.look(part) for side, part in pairs]  # both sides are checked before either changes
        for (side, part), peak in zip(pairs, peaks, strict=True):
            side.note(part, peak)
        if self._rows is None:
            self._rows = (self._buffer(batch.x.x.device), self._buffer(batch.x.x.device))
        left = self._rows[0].push(batch.x.x, batch.x.scale, None, peaks[0].host)
        right = self._rows[1].push(batch.y.x, batch.y.scale, None, peaks[1].host)
        for x, y in zip(left, right, strict=True):
            self._absorb(x, y)

    def _absorb(self, x: Block, y: Block) -> None:
        left = self._sides[0].stage(x, self._workspace, "x")
        right = self._sides[1].stage(y, self._workspace, "y")
        self._allocate()
        self._gram = self._gram.to(left.device)
        if left.dtype != right.dtype:  # one side is scaled or not fp16, on a GPU
            left, right = left.float(), right.float()
        self._note(cross_update(left, right, self._gram, mode=self.mode, workspace=self._workspace))
        if self.audit_columns:
            i, j = (index.to(left.device) for index in self._audited())
            shifts = [side.shift for side in self._sides]
            assert shifts[0] is not None
            assert shifts[1] is not None
            shift = torch.cat([shifts[0][i], shifts[1][j]])
            with one_thread():
                self._audit.add(torch.cat([x.columns(i), y.columns(j)], dim=1), shift.double())

    def _allocate(self) -> None:
        shape = (self._sides[0].width, self._sides[1].width)
        if tuple(self._gram.shape) != shape:
            self._gram = torch.zeros(shape, dtype=torch.float64, device=self._sides[0].total.device)

    def _audited(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = (audited(side.width, self.audit_columns, self.seed) for side in self._sides)
        return x, y

    @accumulates
    def merge(self, other: Self) -> Self:
        """Add the rows of `other`, which stays as it was, and return self.

        Raises:
            ValueError: other options or widths.
        """
        self._check_mergeable(other, "audit_columns")
        device = self._gram.device if self._gram.numel() else other._gram.device
        theirs = [side.to(device) for side in other._sides]
        deltas = [ours.delta(their) for ours, their in zip(self._sides, theirs, strict=True)]
        moved = other._gram.to(device)
        count = theirs[0].count
        if count:
            if deltas[0] is not None:
                moved = moved + torch.outer(deltas[0], theirs[1].total)
            if deltas[1] is not None:
                about = theirs[0].total if deltas[0] is None else theirs[0].total + count * deltas[0]
                moved = moved + torch.outer(about, deltas[1])
            pieces = [
                (torch.zeros(side.width, dtype=torch.float64) if delta is None else delta.cpu())[index]
                for side, delta, index in zip(theirs, deltas, other._audited(), strict=True)
            ]
            self._audit.merge(other._audit, count, torch.cat(pieces))
        for ours, their, delta in zip(self._sides, theirs, deltas, strict=True):
            ours.add(their, delta)
        if count:
            self._gram = self._gram + moved if self._gram.numel() else moved.clone()
        if other._rows is not None and len(other._rows[0]):
            self._take_held(other._rows[0].partial().to(device), other._rows[1].partial().to(device))
        for path in other._paths.values():
            self._note(path)
        return self

    def _take_held(self, x: Block, y: Block) -> None:
        if self._rows is None:
            self._rows = (self._buffer(x.x.device), self._buffer(x.x.device))
        left = (block for part, scale in x.parts() for block in self._rows_of(0, x.x[part], scale))
        right = (block for part, scale in y.parts() for block in self._rows_of(1, y.x[part], scale))
        for first, second in zip(left, right, strict=True):
            self._absorb(first, second)

    def _rows_of(self, side: int, x: torch.Tensor, scale: float) -> Any:
        assert self._rows is not None
        return self._rows[side].push(x, scale)

    @accumulates
    def finalize(self) -> CrossMomentsResult:
        """Means and cross-covariance; takes over the accumulators.

        Raises:
            EngineError: fewer than two rows, or finalized before.
        """
        self._open()
        if self._rows is not None and len(self._rows[0]):
            self._absorb(self._rows[0].partial(), self._rows[1].partial())
        x, y = self._sides
        if x.count < 2:
            raise too_few(x.point, x.count)
        self._spend()
        gram, self._gram, self._rows = self._gram, torch.empty((0, 0), dtype=torch.float64), None
        left = x.total * (-1.0 / x.count)
        for lo in range(0, len(gram), _ROWS):
            add_outer(gram[lo : lo + _ROWS], left[lo : lo + _ROWS], y.total)
        gram.div_(x.count - 1)
        error = self._error(gram, x.count) if self.audit_columns else None
        return CrossMomentsResult(
            count=x.count,
            mean_x=x.mean(),
            mean_y=y.mean(),
            cross_covariance=gram,
            overflow_count=x.overflow + y.overflow,
            audit_error=error,
            certificate=Certificate(
                mode=self.mode,
                kernel_paths=path_facts(self._paths.values()),
                count=x.count,
                width=x.width,
                overflow_count=x.overflow + y.overflow,
                audit_error=error,
            ),
        )

    def _error(self, found: torch.Tensor, count: int) -> float:
        i, j = self._audited()
        exact = self._audit.covariance(count)
        spread = exact.diagonal()
        picked = found.cpu()[i][:, j]
        return audit_error(picked, spread[: len(i)], spread[len(i) :], exact[: len(i), len(i) :])

    def state_dict(self) -> dict[str, Any]:
        """Everything seen, as tensors that share memory with the reduction: save or clone them at once."""
        self._open()
        rows = self._rows or (BlockBuffer(1), BlockBuffer(1))
        state: dict[str, Any] = {
            "config": self._config(self.audit_columns),
            "gram": self._gram,
            "audit": self._audit.state_dict(),
        }
        for name, side, held in zip(_SIDES, self._sides, rows, strict=True):
            state[f"side_{name}"], state[f"rows_{name}"] = side.state_dict(), held.state_dict()
        return state

    @accumulates
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it was saved by a reduction with other options.
        """
        self._open()
        self._load_config(state["config"], self.audit_columns)
        for name, side in zip(_SIDES, self._sides, strict=True):
            side.load_state_dict(state[f"side_{name}"])
        self._gram = state["gram"].clone()
        self._audit.load_state_dict(state["audit"])
        self._rows = None
        if len(state["rows_x"]["x"]):
            device = state["rows_x"]["x"].device
            self._rows = (self._buffer(device), self._buffer(device))
            for name, held in zip(_SIDES, self._rows, strict=True):
                held.load_state_dict(state[f"rows_{name}"], device)
