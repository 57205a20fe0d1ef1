"""Energy of streamed rows along given directions, without a d x d matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.certificate import Certificate, path_facts
from modegap.kernels import Mode, projection_energy

from .audit import audited
from .base import BlockReduction, accumulates, too_few
from .blocks import Block, BlockBuffer
from .result import ProjectionEnergyResult
from .side import Side

_AUDIT_ROWS = 256


class ProjectionEnergy(BlockReduction[ProjectionEnergyResult]):
    """sum_i ((x_i - mean)'u_k)^2 for given u_k: Rayleigh quotients where S itself is not wanted.

    Rows are shifted by the first block's mean in every channel, since along a direction of small variance the
    mean of many channels adds up. In mode precise a direction that holds a share s of the rows' squared norm
    is known to about 1e-7 / sqrt(s) on the host, and to 1e-5 where s is large on a GPU, whose tensor cores
    round towards zero along d; in mode exact to fp64. Invariance as in Moments.

    Memory: fp64 [K], U twice, and two blocks of rows.

    Args:
        U: [d, K] directions as columns, any floating dtype; need not be orthonormal.
        mode: as in Moments, and so are block_rows and seed.
        audit_directions: directions that are accumulated in fp64 alongside.
    """

    @accumulates
    def __init__(
        self,
        U: torch.Tensor,
        mode: Mode = "precise",
        audit_directions: int = 8,
        *,
        block_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        """An identity: nothing seen."""
        super().__init__(mode, block_rows, seed)
        if U.dim() != 2 or not U.dtype.is_floating_point:
            raise ValueError(f"U: got {U.dtype} {tuple(U.shape)}, expected a floating [d, K]")
        if audit_directions < 0:
            raise ValueError(f"audit_directions: got {audit_directions}, expected at least 0")
        self.U = U
        self.audit_directions = audit_directions
        self._side = Side(mode, every_mean=True)
        self._rows: BlockBuffer | None = None
        self._index = audited(U.shape[1], audit_directions, seed)
        self._wide = U.double()
        self._narrow = U.to(torch.float64 if mode == "exact" else torch.float32)
        self._energy = torch.zeros(U.shape[1], dtype=torch.float64, device=U.device)
        self._exact = torch.zeros(len(self._index), dtype=torch.float64, device=U.device)

    @accumulates
    def fresh(self) -> Self:
        """An identity with the same directions and options, and the same shift where it is known."""
        new = type(self)(
            self.U, self.mode, self.audit_directions, block_rows=self._block_rows, seed=self.seed
        )
        new._side = self._side.fresh()
        return new

    @accumulates
    def update(self, batch: ActivationBatch) -> None:
        """Add rows.

        Raises:
            ValueError: the width is not U's, or point, dtype or device differ from earlier batches.
            EngineError: a value is NaN or infinite, or the reduction is finalized.
        """
        self._open()
        if batch.width != len(self.U):
            raise ValueError(f"{batch.point}: got width {batch.width}, expected {len(self.U)} as in U")
        self._side.admit(batch)
        self._push(batch.x, batch.scale)

    def _push(self, x: torch.Tensor, scale: float) -> None:
        if self._rows is None:
            self._rows = self._buffer(x.device)
        for block in self._rows.push(x, scale):
            self._absorb(block)

    def _absorb(self, block: Block) -> None:
        rows = self._side.stage(block, self._workspace, "rows")
        self._to(rows.device)
        self._note(projection_energy(rows, self._narrow, self._energy))
        if len(self._index):
            assert self._side.shift is not None
            directions = self._wide[:, self._index.to(rows.device)]
            for part, scale in block.parts():
                stored = block.x[part]
                for lo in range(0, len(stored), _AUDIT_ROWS):
                    x = stored[lo : lo + _AUDIT_ROWS]
                    moved = (x.double() * scale).sub_(self._side.shift.double())
                    self._exact += (moved @ directions).square_().sum(0)

    def _to(self, device: torch.device) -> None:
        if self._energy.device != device:
            self._wide, self._narrow = self._wide.to(device), self._narrow.to(device)
            self._energy, self._exact = self._energy.to(device), self._exact.to(device)

    @accumulates
    def merge(self, other: Self) -> Self:
        """Add the rows of `other`, which stays as it was, and return self.

        Raises:
            ValueError: other options or directions.
        """
        self._check_mergeable(other, "audit_directions")
        if self.U is not other.U and not torch.equal(self.U, other.U):
            raise ValueError("merge: the directions U differ, expected the same; create workers with fresh()")
        device = self._energy.device
        theirs = other._side.to(device)
        delta = self._side.delta(theirs)
        more = torch.zeros_like(self._energy)
        if theirs.count and delta is not None:
            moved = delta @ self._wide
            more = moved * (2.0 * (theirs.total @ self._wide) + theirs.count * moved)
        self._energy = self._energy + other._energy.to(device) + more
        self._exact = self._exact + other._exact.to(device) + more[self._index.to(device)]
        self._side.add(theirs, delta)
        if other._rows is not None and len(other._rows):
            held = other._rows.partial()
            for part, scale in held.parts():
                self._push(held.x[part].to(device), scale)
        for path in other._paths.values():
            self._note(path)
        return self

    @accumulates
    def finalize(self) -> ProjectionEnergyResult:
        """Energies about the mean; takes over the accumulators.

        Raises:
            EngineError: fewer than two rows, or finalized before.
        """
        self._open()
        if self._rows is not None and len(self._rows):
            self._absorb(self._rows.partial())
        side = self._side
        if side.count < 2:
            raise too_few(side.point, side.count)
        self._spend()
        self._rows = None
        assert side.shift is not None
        offset = side.total @ self._wide
        about = offset.square() / side.count
        energy = (self._energy - about).clamp_(min=0.0)
        index = self._index.to(energy.device)
        exact = (self._exact - about[index]).clamp_(min=0.0)
        known = exact > 0
        gap = ((energy[index] - exact).abs() / exact)[known]
        error = (float(gap.amax()) if len(gap) else 0.0) if len(index) else None
        return ProjectionEnergyResult(
            count=side.count,
            mean=side.shift.double() @ self._wide + offset / side.count,
            energy=energy,
            overflow_count=side.overflow,
            audit_error=error,
            certificate=Certificate(
                mode=self.mode,
                kernel_paths=path_facts(self._paths.values()),
                count=side.count,
                width=side.width,
                overflow_count=side.overflow,
                audit_error=error,
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything seen, as tensors that share memory with the reduction: save or clone them at once."""
        self._open()
        rows = self._rows or BlockBuffer(1)
        return {
            "config": self._config(self.audit_directions, *self.U.shape),
            "side": self._side.state_dict(),
            "energy": self._energy,
            "exact": self._exact,
            "rows": rows.state_dict(),
        }

    @accumulates
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same directions.

        Raises:
            ValueError: it was saved by a reduction with other options.
        """
        self._open()
        self._load_config(state["config"], self.audit_directions, *self.U.shape)
        self._side.load_state_dict(state["side"])
        self._energy, self._exact = state["energy"].clone(), state["exact"].clone()
        self._wide, self._narrow = self._wide.to(self._energy.device), self._narrow.to(self._energy.device)
        self._rows = None
        if len(state["rows"]["x"]):
            self._rows = self._buffer(state["rows"]["x"].device)
            self._rows.load_state_dict(state["rows"], state["rows"]["x"].device)
