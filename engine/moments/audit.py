"""The audit: a few channels accumulated in fp64 from the stored values, to check a result against."""

from __future__ import annotations

import numpy as np
import torch

from modegap.kernels.host import add_wide

from .blocks import placed
from .shifted import finish, move_lower


def audited(width: int, columns: int, seed: int) -> torch.Tensor:
    """Indices of the audited channels, int64 [min(columns, width)], ascending: a seeded random choice."""
    chosen = np.random.default_rng(seed).choice(width, min(columns, width), replace=False)
    return torch.from_numpy(np.sort(chosen).astype(np.int64))


class Audit:
    """fp64 second moments of k columns about a constant."""

    def __init__(self) -> None:
        """Nothing seen."""
        self.gram = torch.empty((0, 0), dtype=torch.float64)
        self.total = torch.empty(0, dtype=torch.float64)

    def add(self, values: torch.Tensor, shift: torch.Tensor) -> None:
        """Add true values fp64 [n, k] about `shift`, fp64 [k]."""
        moved = values - shift
        if not len(self.total):
            k = moved.shape[1]
            self.gram, self.total = moved.new_zeros((k, k)), moved.new_zeros(k)
        self.gram = placed(self.gram, moved.device)
        if moved.device.type == "cpu":
            # torch's product would wait for its threads at a barrier: 8 ms instead of 0.2 on a busy machine.
            add_wide(moved, moved, self.gram, lower=True)
        else:
            self.gram.addmm_(moved.T, moved)
        self.total = placed(self.total, moved.device).add_(moved.sum(0))

    def merge(self, other: Audit, count: int, delta: torch.Tensor | None) -> None:
        """Add another audit of `count` rows whose constant is this one's plus delta [k]."""
        if not len(other.total):
            return
        if not len(self.total):
            self.gram, self.total = torch.zeros_like(other.gram), torch.zeros_like(other.total)
        device = self.gram.device
        moved = None if delta is None else delta.to(device)
        total = other.total.to(device)
        move_lower(self.gram, other.gram, total, count, moved)
        # Later updates add full products, so the upper triangle must stay valid too.
        lower = self.gram.tril()
        self.gram = lower + lower.tril(-1).T
        self.total = self.total + (total if moved is None else total + count * moved)

    def covariance(self, count: int) -> torch.Tensor:
        """The audited channels' covariance, fp64 [k, k] on the host, ddof 1."""
        return finish(self.gram.cpu().clone(), self.total.cpu(), count)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything seen, as tensors."""
        return {"gram": self.gram, "total": self.total}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a `state_dict`."""
        self.gram, self.total = state["gram"].clone(), state["total"].clone()


def audit_error(
    found: torch.Tensor, row_variance: torch.Tensor, column_variance: torch.Tensor, exact: torch.Tensor
) -> float:
    """max |found_ij - exact_ij| / sqrt(row_variance_i column_variance_j) where the variances are not 0."""
    size = torch.sqrt(row_variance.clamp(min=0)[:, None] * column_variance.clamp(min=0)[None, :])
    gap = (found.cpu() - exact).abs()
    known = size > 0
    return float((gap[known] / size[known]).amax()) if bool(known.any()) else 0.0
