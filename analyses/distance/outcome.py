"""The result of the distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import DistanceConfig
from .transport import Estimate

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class PairDistance:
    """Distances between the modal rows at one hook point and the text rows at its counterpart.

    A measure that was not asked for, or could not be computed, is None; `messages` say why.

    Attributes:
        point: hook point of the modal store.
        text_point: hook point of the text store.
        rows: `tokens` or `pooled`.
        n: modal rows.
        n_text: text rows.
        width: d.
        w1: exact W1 of `w1_rows` sampled rows a side after the PCA.
        w1_rows: see there.
        w1_floor: W1 between two disjoint samples of one law, the larger of both laws: what sampling alone gives.
        w1_floor_rows: rows a side of the floor; fewer rows make it larger.
        sliced: sliced W1 of all rows.
        sliced_error: its standard error over the directions.
        gaussian_w2: 2-Wasserstein distance of the normal laws with the means and covariances of all rows.
        mmd2: unbiased MMD^2 of the sampled rows.
        mmd2_features: unbiased MMD^2 of all rows by random features.
        sigma2: sigma^2 of the kernel.
        cka: linear CKA of the pooled rows, paired by sample.
        cka_rows: samples behind it.
        participation: participation ratio of the modal covariance.
        participation_text: of the text covariance.
        diameter: D of the modal rows, from the sampled ones.
        diameter_text: of the text rows.
        effective_diameter: D_eff of the sampled modal rows, as in `lipschitz`.
        effective_diameter_text: of the text rows.
        messages: what is missing, and why.
    """

    point: str
    text_point: str
    rows: str = ""
    n: int = 0
    n_text: int = 0
    width: int = 0
    w1: Estimate | None = None
    w1_rows: int = 0
    w1_floor: float | None = None
    w1_floor_rows: int = 0
    sliced: float | None = None
    sliced_error: float | None = None
    gaussian_w2: float | None = None
    mmd2: Estimate | None = None
    mmd2_features: float | None = None
    sigma2: float | None = None
    cka: float | None = None
    cka_rows: int = 0
    participation: float | None = None
    participation_text: float | None = None
    diameter: float | None = None
    diameter_text: float | None = None
    effective_diameter: float | None = None
    effective_diameter_text: float | None = None
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClassDistance:
    """Exact W1 between the rows of one class in both stores, in the joint PCA of the pair.

    Attributes:
        point: hook point of the modal store.
        label: the class.
        n: modal rows sampled.
        n_text: text rows sampled.
        w1: None where a side has too few rows; `message` says so.
        message: see there.
    """

    point: str
    label: str
    n: int
    n_text: int
    w1: Estimate | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class DistanceResult(NotebookRepr):
    """Distances between the modal and the text law along the hook points.

    Attributes:
        config: the options used.
        pairs: one entry a hook point, in the order of the pipeline.
        classes: one entry a hook point and class, where a label was given.
        certificate: of the modal rows.
        text_certificate: of the text rows.
    """

    config: DistanceConfig
    pairs: tuple[PairDistance, ...]
    classes: tuple[ClassDistance, ...]
    certificate: Certificate
    text_certificate: Certificate

    def pair(self, point: str) -> PairDistance:
        """The distances at a hook point.

        Raises:
            KeyError: a hook point that was not compared.
        """
        for pair in self.pairs:
            if pair.point == point:
                return pair
        raise KeyError(f"no distances at {point!r}; there are {', '.join(p.point for p in self.pairs)}")

    def to_json(self) -> dict[str, Json]:
        """Strict JSON."""
        return {
            "analysis": "distance",
            "config": jsonable(self.config),
            "pairs": jsonable(self.pairs),
            "classes": jsonable(self.classes),
            "certificate": jsonable(self.certificate),
            "text_certificate": jsonable(self.text_certificate),
        }

    def table(self) -> Table:
        """One row a hook point."""
        columns = (
            "hook point",
            "text",
            Column("W1", format=".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
            Column("sampling floor", format=".4g"),
            Column("sliced W1", format=".4g"),
            Column("Gaussian W2", format=".4g"),
            Column("MMD²", format=".4g"),
            Column("MMD², all rows", format=".4g"),
            Column("CKA", format=".3f"),
            Column("PR", format=".1f"),
            Column("PR, text", format=".1f"),
            Column("D", format=".4g"),
            Column("D_eff", format=".4g"),
            "rows",
            "text rows",
        )
        rows = [
            (
                p.point,
                p.text_point,
                p.w1.value if p.w1 else None,
                p.w1.low if p.w1 else None,
                p.w1.high if p.w1 else None,
                p.w1_floor,
                p.sliced,
                p.gaussian_w2,
                p.mmd2.value if p.mmd2 else None,
                p.mmd2_features,
                p.cka,
                p.participation,
                p.participation_text,
                p.diameter,
                p.effective_diameter,
                p.n,
                p.n_text,
            )
            for p in self.pairs
        ]
        return Table("Distances between the modal and the text law", columns, rows, self._notes())

    def class_table(self) -> Table:
        """One row a hook point and class."""
        columns = (
            "hook point",
            self.config.label or "class",
            Column("W1", format=".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
            "rows",
            "text rows",
        )
        rows = [
            (c.point, c.label, *((c.w1.value, c.w1.low, c.w1.high) if c.w1 else (None,) * 3), c.n, c.n_text)
            for c in self.classes
        ]
        notes = tuple(f"{c.point}, {c.label}: {c.message}" for c in self.classes if c.message)
        return Table(f"W1 by {self.config.label or 'class'}", columns, rows, notes)

    def tables(self) -> list[Table]:
        """The tables, in order."""
        return [self.table(), *([self.class_table()] if self.classes else [])]

    def figure(self) -> Any:
        """Each measure along the hook points."""
        from .figure import distance_chart

        return distance_chart(self)

    def _notes(self) -> tuple[str, ...]:
        c = self.config
        basis = (
            f"PCA to {c.pca} of the sampled rows, fitted again in every resample (the paper's scripts)"
            if c.law == "paper"
            else f"joint PCA to {c.pca} from all rows, both laws with equal weight"
        )
        centred = "plain percentiles" if c.law == "paper" else "moved onto the estimate by their median"
        notes = [
            f"W1: exact, Euclidean, {basis}, up to {c.samples} sampled rows a side, {100 * c.level:g} % "
            f"bootstrap interval over {c.bootstrap} resamples, {centred}; its floor is "
            "the W1 between disjoint samples of one law",
            f"sliced W1: {c.projections} directions, all rows; MMD²: RBF, median heuristic, unbiased; CKA: linear, "
            "pooled rows paired by sample; PR: participation ratio",
        ]
        for pair in self.pairs:
            notes += [f"{pair.point}: {message}" for message in pair.messages]
        return tuple(notes)
