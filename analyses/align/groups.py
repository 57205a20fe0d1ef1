"""Second moments of projected rows by group of samples: all that an interval on rho needs.

For fixed modes U [d, K], rho with group g deleted is u' S_T(-g) u / u' S_M(-g) u, and both quadratic forms
are variances of the projections U'x: G x K counts, means and sums of squares a store, whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.engine.shards import boundary_of

if TYPE_CHECKING:
    from modegap.engine.batch import ActivationBatch
    from modegap.engine.reduction import Reduction

Float = NDArray[np.float64]
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, eq=False)
class GroupMoments:
    """Of u_k'x by group and mode: rows [G], mean [G, K] and sum of squared deviations [G, K], fp64."""

    count: Float
    mean: Float
    m2: Float

    def variance(self, weights: Float | None = None) -> Float:
        """Variance (ddof 1) of every mode with group g taken `weights[..., g]` times.

        Args:
            weights: [..., G] multiplicities, 0 to leave a group out; None takes every group once.

        Returns:
            [..., K]; NaN where fewer than two rows are left.
        """
        w = np.ones(len(self.count)) if weights is None else weights
        rows = w * self.count
        total = rows.sum(-1, keepdims=True)
        # About the mean of all groups, so that a mean much larger than the spread cancels nothing.
        offset = self.mean - self.count @ self.mean / self.count.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            between = rows @ offset**2 - (rows @ offset) ** 2 / total
            return np.asarray(np.where(total > 1, (w @ self.m2 + between) / (total - 1), np.nan))


class GroupProjection:
    """Reduction to the `GroupMoments` of U'x in fp64; merges exactly (Chan, Golub and LeVeque 1983).

    Args:
        modes: U, fp64 [d, K].
        group_of_sample: group of each sample, int64 [samples], in 0..G-1.
        n_groups: G.
    """

    def __init__(self, modes: torch.Tensor, group_of_sample: NDArray[np.int64], n_groups: int) -> None:
        """An empty reduction."""
        self._modes = modes
        self._groups = torch.from_numpy(group_of_sample)
        self._n_groups = n_groups
        self._count = torch.zeros(n_groups, dtype=torch.float64)
        self._mean = torch.zeros(n_groups, modes.shape[1], dtype=torch.float64)
        self._m2 = torch.zeros_like(self._mean)

    def fresh(self) -> Self:
        """An empty reduction of the same modes and groups."""
        return type(self)(self._modes, self._groups.numpy(), self._n_groups)

    def update(self, batch: ActivationBatch) -> None:
        """Add the rows of one batch.

        Raises:
            ValueError: the batch does not say which samples its rows belong to.
        """
        if batch.sample is None:
            raise ValueError(f"{batch.point}: got rows without sample indices, expected those of `stream`")
        if self._modes.device != batch.x.device:
            self._modes = self._modes.to(batch.x.device)
        # fp64: in fp32 one outlier channel a thousand times the rest would drown the small modes.
        projected = (batch.x.to(torch.float64) @ self._modes * batch.scale).cpu()
        sample = batch.sample.to("cpu", torch.int64)
        group = self._groups[sample]
        count = torch.bincount(group, minlength=self._n_groups).to(torch.float64)
        mean = torch.zeros_like(self._mean).index_add_(0, group, projected) / count.clamp(min=1)[:, None]
        m2 = torch.zeros_like(self._m2).index_add_(0, group, (projected - mean[group]) ** 2)
        self._add(count, mean, m2)

    def merge(self, other: Self) -> Self:
        """This reduction with the rows of `other` added."""
        self._add(other._count, other._mean, other._m2)
        return self

    def finalize(self) -> GroupMoments:
        """The moments of all rows seen."""
        return GroupMoments(self._count.numpy(), self._mean.numpy(), self._m2.numpy())

    def state_dict(self) -> dict[str, Any]:
        """The accumulators, as tensors."""
        return {"count": self._count, "mean": self._mean, "m2": self._m2}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._count, self._mean, self._m2 = (state[name].clone() for name in ("count", "mean", "m2"))

    def _add(self, count: torch.Tensor, mean: torch.Tensor, m2: torch.Tensor) -> None:
        total = self._count + count
        share = (count / total.clamp(min=1))[:, None]
        delta = mean - self._mean
        self._m2 = self._m2 + m2 + delta**2 * self._count[:, None] * share
        self._mean = self._mean + delta * share
        self._count = total


def assign_groups(ids: list[str], n_groups: int, seed: int) -> dict[str, int]:
    """Sample id to group: a seeded permutation of the ids dealt out evenly."""
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[i]: int(rank % n_groups) for rank, i in enumerate(order)}


class Both(Generic[A, B]):
    """Two reductions over one pass of the rows; the result is the pair of their results."""

    def __init__(self, first: Reduction[ActivationBatch, A], second: Reduction[ActivationBatch, B]) -> None:
        """A pair of reductions that have seen nothing yet."""
        self._first, self._second = first, second

    def fresh(self) -> Self:
        """An empty pair."""
        return type(self)(self._first.fresh(), self._second.fresh())

    def update(self, batch: ActivationBatch) -> None:
        """Add the rows of one batch to both."""
        self._first.update(batch)
        self._second.update(batch)

    def merge(self, other: Self) -> Self:
        """This pair with the rows of `other` added."""
        return type(self)(self._first.merge(other._first), self._second.merge(other._second))

    def boundary(self, device: str | None = None) -> int:
        """Where a pass may be cut: the least common multiple of both."""
        return math.lcm(*(boundary_of(part, device) for part in (self._first, self._second)))

    def finalize(self) -> tuple[A, B]:
        """(result of the first, result of the second)."""
        return self._first.finalize(), self._second.finalize()

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"first": self._first.state_dict(), "second": self._second.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._first.load_state_dict(state["first"])
        self._second.load_state_dict(state["second"])
