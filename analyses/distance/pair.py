"""One hook point's distances: the passes over the rows, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.align.inputs import Inputs
from modegap.analyses.lipschitz.diameter import diameter
from modegap.engine.moments import CrossMoments, FourierFeatures, Moments, Projections, RowSample
from modegap.engine.reduce import reduce, reduce_pairs
from modegap.engine.shards import boundary_of

from .config import DistanceConfig
from .kernel import bandwidth, linear_cka, mmd2, mmd2_features, participation_ratio
from .outcome import PairDistance
from .transport import Estimate, gaussian_w2, sliced_w1, w1, w1_bootstrap

if TYPE_CHECKING:
    from modegap.engine.batch import ActivationBatch
    from modegap.engine.certificate import Certificate
    from modegap.engine.cluster import Cluster
    from modegap.engine.moments import MomentsResult
    from modegap.engine.reduction import Reduction

Float = NDArray[np.float64]
Rows = NDArray[np.int64]
R = TypeVar("R")

_FEW = 3


@dataclass(frozen=True, slots=True, eq=False)
class _Law:
    """One side: moments of all rows and the sampled ones, [k, d] in the order of the draw."""

    n: int
    mean: Float
    covariance: Float
    sample: Float
    certificate: Certificate


class Comparison:
    """The distances of one pair of hook points.

    Args:
        inputs: which rows.
        config: options.
        device: where rows are reduced.
        progress: of `reduce`.
        cluster: of `reduce`.
    """

    def __init__(
        self,
        inputs: Inputs,
        config: DistanceConfig,
        device: str | torch.device | None,
        progress: Callable[[int, int, int], None] | None,
        cluster: Cluster | None = None,
    ) -> None:
        """Nothing read yet."""
        self.inputs, self.config = inputs, config
        self._device, self._progress, self._cluster = device, progress, cluster
        self._sides = ((inputs.modal, inputs.point), (inputs.text, inputs.text_point))
        self._laws: tuple[_Law, _Law] | None = None
        self._class_rows: Mapping[str, tuple[Rows, Rows]] = {}
        self._class_values: list[tuple[Rows, Float]] = []

    @property
    def certificates(self) -> tuple[Certificate, Certificate]:
        """Of the modal and of the text rows; after `measure`."""
        assert self._laws is not None
        return self._laws[0].certificate, self._laws[1].certificate

    def measure(self, class_rows: Mapping[str, tuple[Rows, Rows]]) -> PairDistance:
        """Every configured measure.

        Args:
            class_rows: (modal, text) global rows of each class, for `class_values` afterwards.

        Raises:
            EngineError: a value of the rows is NaN or infinite.
            ValueError: fewer than three rows on a side.
        """
        config, inputs = self.config, self.inputs
        wanted = set(config.measures)
        modal, text = self._laws = (self._law(0), self._law(1))
        said: list[str] = []
        extents = [
            diameter(law.sample, seed=config.seed, paper=config.law == "paper") for law in (modal, text)
        ]
        found: dict[str, Any] = {
            "diameter": extents[0].D,
            "diameter_text": extents[1].D,
            "effective_diameter": extents[0].D_eff,
            "effective_diameter_text": extents[1].D_eff,
            "participation": participation_ratio(modal.covariance),
            "participation_text": participation_ratio(text.covariance),
        }
        x, y = modal.sample[: config.samples], text.sample[: config.samples]
        mean = (modal.mean + text.mean) / 2
        basis = self._basis(modal, text) if "w1" in wanted or class_rows else None
        if "w1" in wanted:
            found |= self._exact(modal, text, mean, basis)
        if "gaussian" in wanted:
            found["gaussian_w2"] = gaussian_w2(modal.mean, modal.covariance, text.mean, text.covariance)
        if "mmd" in wanted:
            sigma2 = bandwidth(x, y)
            if sigma2 > 0:
                found |= {"sigma2": sigma2, "mmd2": mmd2(x, y, sigma2, level=config.level)}
            else:
                said.append("MMD²: half of the sampled rows are the same, so the kernel has no width")
        found |= self._second_pass(mean, basis, found.get("sigma2"), class_rows)
        if "cka" in wanted:
            try:
                found |= self._cka()
            except ValueError as problem:
                said.append(f"CKA: {problem}")
        for name, law in (("modal", modal), ("text", text)):
            if law.n < len(law.mean):
                said.append(
                    f"{law.n} {name} {inputs.kind} rows for {len(law.mean)} dimensions: the participation ratio is at "
                    "most the number of rows, and the Gaussian W2 is biased"
                )
        return PairDistance(
            inputs.point,
            inputs.text_point,
            inputs.kind,
            modal.n,
            text.n,
            len(mean),
            messages=tuple(said),
            **found,
        )

    def class_values(self, name: str) -> tuple[Float, Float]:
        """Sampled rows of a class on both sides, in the joint PCA; after `measure`."""
        rows = self._class_rows[name]
        picked = []
        for side, (row, values) in zip(rows, self._class_values, strict=True):
            picked.append(values[np.searchsorted(row, side)])
        return picked[0], picked[1]

    def _law(self, side: int) -> _Law:
        store, point = self._sides[side]
        rows = store.rows(point, self.inputs.kind)
        n, width = rows.n_valid_rows, rows.shape[1]
        if n < _FEW:
            raise ValueError(f"{n} complete {self.inputs.kind} rows at {point}, expected at least {_FEW}")
        rng = np.random.default_rng([self.config.seed, side])
        chosen = rng.choice(n, min(n, 2 * self.config.samples), replace=False)
        order = np.argsort(chosen)
        wanted = torch.from_numpy(chosen[order])
        found: MomentsResult
        moments = Moments(mode="exact" if self.config.law == "paper" else "precise")
        found, sample = self._reduce(side, _All([moments, RowSample(wanted, width)]))
        values = np.empty((len(chosen), width))
        values[order] = sample.values.numpy()
        return _Law(n, found.mean.cpu().numpy(), found.covariance.cpu().numpy(), values, found.certificate)

    def _basis(self, modal: _Law, text: _Law) -> Float | None:
        """Leading eigenvectors [d, pca] of the covariance of both laws with equal weight; None if all are kept."""
        import scipy.linalg

        d, k = len(modal.mean), self.config.pca
        if d <= k:
            return None
        gap = (modal.mean - text.mean) / 2
        joint = (modal.covariance + text.covariance) / 2 + np.outer(gap, gap)
        if self._device is not None and torch.device(self._device).type == "cuda":
            vectors = torch.linalg.eigh(torch.from_numpy(joint).to(self._device)).eigenvectors
            return np.asarray(vectors[:, -k:].cpu().numpy())
        return np.asarray(scipy.linalg.eigh(joint, subset_by_index=(d - k, d - 1), overwrite_a=True)[1])

    def _exact(self, modal: _Law, text: _Law, mean: Float, basis: Float | None) -> dict[str, Any]:
        config = self.config
        refit = config.pca if config.law == "paper" else None

        def reduced(rows: Float) -> Float:
            return rows if refit is not None or basis is None else (rows - mean) @ basis

        sides = [reduced(law.sample) for law in (modal, text)]
        x, y = (rows[: config.samples] for rows in sides)
        value = w1_bootstrap(
            x,
            y,
            draws=config.bootstrap,
            level=config.level,
            seed=config.seed,
            jobs=config.n_jobs,
            refit=refit,
        )
        half = min(len(rows) for rows in sides) // 2
        floors = [_floor(rows[:half], rows[half : 2 * half], refit) for rows in sides]
        return {
            "w1": value,
            "w1_rows": min(len(x), len(y)),
            "w1_floor": max(floors),
            "w1_floor_rows": half,
        }

    def _second_pass(
        self,
        mean: Float,
        basis: Float | None,
        sigma2: float | None,
        class_rows: Mapping[str, tuple[Rows, Rows]],
    ) -> dict[str, Any]:
        """Projections, random features and class rows of all rows: one pass a side, or more for memory."""
        config, d = self.config, len(mean)
        rng = np.random.default_rng([config.seed, 2])
        shift = torch.from_numpy(mean)
        directions = rng.standard_normal((d, config.projections if "sliced" in config.measures else 0))
        directions /= np.linalg.norm(directions, axis=0)
        frequencies = rng.standard_normal((d, config.features)) / np.sqrt(sigma2) if sigma2 else None
        assert self._laws is not None
        groups = _groups(directions, config.memory // (4 * sum(law.n for law in self._laws)))
        features, values, sliced = [], [], []
        for at, group in enumerate(groups):
            along = []
            for side in (0, 1):
                parts: dict[str, Any] = {}
                if group.shape[1]:
                    parts["along"] = Projections(torch.from_numpy(group), shift)
                if at == 0 and frequencies is not None:
                    parts["features"] = FourierFeatures(torch.from_numpy(frequencies), shift)
                if at == 0 and class_rows:
                    union = np.unique(np.concatenate([rows[side] for rows in class_rows.values()]))
                    reduced = None if basis is None else torch.from_numpy(np.ascontiguousarray(basis))
                    centre = None if basis is None else shift
                    parts["rows"] = RowSample(torch.from_numpy(union), d, reduced, centre)
                if not parts:
                    continue
                done = dict(zip(parts, self._reduce(side, _All(list(parts.values()))), strict=True))
                if "along" in done:
                    along.append(done["along"].values.numpy())
                if "features" in done:
                    features.append((done["features"].count, done["features"].total.numpy()))
                if "rows" in done:
                    values.append((done["rows"].row.numpy(), done["rows"].values.numpy()))
            if along:
                sliced.append((sliced_w1(along[0], along[1]), group.shape[1]))
        self._class_rows, self._class_values = class_rows, values
        out: dict[str, Any] = {}
        if sliced:
            out["sliced"], out["sliced_error"] = _pooled(sliced)
        if features:
            out["mmd2_features"] = mmd2_features(*features[0], *features[1])
        return out

    def _cka(self) -> dict[str, Any]:
        modal, text = self.inputs.modal, self.inputs.text
        for name, store, point in (
            ("modal", modal, self.inputs.point),
            ("text", text, self.inputs.text_point),
        ):
            if store.points[point].rows == "tokens":
                raise ValueError(f"the {name} store has no pooled rows at {point}; extract with rows=both")
        arrays = [store.rows(point, "pooled") for store, point in self._sides]
        n = min(array.n_valid_rows for array in arrays)
        if n < _FEW or list(modal.samples) != list(text.samples):
            raise ValueError(
                "the stores do not hold the same samples in the same order, so no rows are paired; extract both "
                "from one data set"
            )
        options: dict[str, Any] = {
            "kind": "pooled",
            "stop": n,
            "device": self._device,
            "cluster": self._cluster,
        }
        cross = reduce_pairs(
            modal,
            (self.inputs.point, self.inputs.text_point),
            CrossMoments(mode="exact"),
            other=text,
            **options,
        )
        own = [
            reduce(store, point, Moments(mode="exact"), **options).covariance.cpu().numpy()
            for store, point in self._sides
        ]
        return {
            "cka": linear_cka(cross.cross_covariance.cpu().numpy(), own[0], own[1]),
            "cka_rows": n,
        }

    def _reduce(self, side: int, reduction: Reduction[ActivationBatch, R]) -> R:
        store, point = self._sides[side]
        return reduce(
            store,
            point,
            reduction,
            kind=self.inputs.kind,
            device=self._device,
            progress=self._progress,
            cluster=self._cluster,
        )


class _All:
    """Several reductions over one pass; the result is the list of theirs."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def fresh(self) -> _All:
        return _All([part.fresh() for part in self._parts])

    def update(self, batch: ActivationBatch) -> None:
        for part in self._parts:
            part.update(batch)

    def merge(self, other: _All) -> _All:
        return _All([ours.merge(theirs) for ours, theirs in zip(self._parts, other._parts, strict=True)])

    def boundary(self, device: str | None = None) -> int:
        return math.lcm(*(boundary_of(part, device) for part in self._parts))

    def finalize(self) -> list[Any]:
        return [part.finalize() for part in self._parts]

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self._parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for i, part in enumerate(self._parts):
            part.load_state_dict(state[str(i)])


def _groups(directions: Float, most: int) -> list[Float]:
    """The directions in groups of at most `most` columns, at least one (possibly empty) group."""
    step = max(most, 1)
    return [directions[:, at : at + step] for at in range(0, max(directions.shape[1], 1), step)]


def _pooled(parts: list[tuple[tuple[float, float], int]]) -> tuple[float, float]:
    """Mean and standard error over the directions of all groups, from those of each group."""
    count = sum(size for _, size in parts)
    mean = sum(value * size for (value, _), size in parts) / count
    squares = sum(
        (0.0 if size < 2 else error**2 * size * (size - 1)) + size * (value - mean) ** 2
        for (value, error), size in parts
    )
    return mean, float(np.sqrt(squares / (count - 1) / count))


def _floor(x: Float, y: Float, refit: int | None) -> float:
    if refit is None:
        return w1(x, y)
    found: Estimate = w1_bootstrap(x, y, draws=0, level=0.5, seed=0, jobs=1, refit=refit)
    return found.value
