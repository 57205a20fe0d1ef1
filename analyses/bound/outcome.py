"""The result of the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import BoundConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Prefactor:
    """Theorem 2 with one constant and one diameter.

    Attributes:
        constant: `positions` (norm over positions and channels, as published) or `shift` (norm of the sum over
            positions: the constant that belongs to distances of mean rows).
        diameter: `D` or `D_eff`.
        L: the constant, nats a token and unit.
        D: the diameter.
        log10: log10 of (1 + exp(L D)) L.
        log10_bound: log10 of that times the larger of the two distances between the laws.
    """

    constant: str
    diameter: str
    L: float
    D: float
    log10: float
    log10_bound: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A model with a data set.

    Attributes:
        name: model / data set.
        n: rows a side of the transport distance.
        L: statistic of the norms over positions and channels.
        w1: W1 between the mean rows of the two laws.
        w1_halves: the same between half as many rows a side.
        w1_floor: W1 between two halves of the modal rows: what `w1_halves` would be for equal laws.
        paired: mean distance of the two mean rows of a sample; None where the stores share no samples.
        first_order: L w1, by which the paper ranks.
        prefactors: Theorem 2.
        gap: modal minus text GMI; None where it was not measured.
    """

    name: str
    n: int
    L: float
    w1: float
    w1_halves: float
    w1_floor: float
    paired: float | None
    first_order: float
    prefactors: tuple[Prefactor, ...]
    gap: Estimate | None

    def looseness(self, prefactor: Prefactor) -> float | None:
        """log10 of the bound over the measured gap: below 0 it does not hold. None without a gap."""
        if self.gap is None or self.gap.value == 0:
            return None
        return prefactor.log10_bound - float(np.log10(abs(self.gap.value)))


@dataclass(frozen=True, slots=True)
class Penalty:
    """Theorem 3 for the probe of one label; `message` says why the numbers are missing.

    Attributes:
        label: label column.
        n: held-out rows a side.
        classes: number of classes.
        L_h: Lipschitz constant of log h, from the fitted weights.
        modal: mean log h under the modal law, nats.
        text: under the text law.
        w1: E_S[W1(P_M(. | S), P_T(. | S))] of the same rows.
        bound: L_h w1.
        ratio: L_log / L_h.
        message: why there are no numbers.
    """

    label: str
    n: int = 0
    classes: int = 0
    L_h: float | None = None
    modal: float | None = None
    text: float | None = None
    w1: float | None = None
    bound: float | None = None
    ratio: float | None = None
    message: str = ""

    @property
    def loss(self) -> float | None:
        """|modal - text|, nats."""
        return None if self.modal is None or self.text is None else abs(self.modal - self.text)

    @property
    def holds(self) -> bool | None:
        """Whether the loss is within the bound (1e-6 relative room for rounding)."""
        if self.loss is None or self.bound is None:
            return None
        return self.loss <= self.bound * (1 + 1e-6)


@dataclass(frozen=True, slots=True, eq=False)
class BoundResult(NotebookRepr):
    """The bounds of one pair, ranked among others.

    Attributes:
        config: the options used.
        pairs: this pair, then the others.
        penalties: Theorem 3 of this pair, one entry a label.
        certificate: of the rows.
    """

    config: BoundConfig
    pairs: tuple[Pair, ...]
    penalties: tuple[Penalty, ...]
    certificate: Certificate

    @property
    def pair(self) -> Pair:
        """The pair that was computed here."""
        return self.pairs[0]

    def ranking(self) -> tuple[Pair, ...]:
        """All pairs by L W1, the largest first."""
        return tuple(sorted(self.pairs, key=lambda pair: -pair.first_order))

    def agreement(self) -> tuple[float, float] | None:
        """(Spearman correlation of L W1 with |gap|, its p value) over pairs with a gap; None below three."""
        from scipy.stats import spearmanr

        measured = [(pair.first_order, abs(pair.gap.value)) for pair in self.pairs if pair.gap is not None]
        if len(measured) < 3:
            return None
        first, gaps = np.array(measured).T
        test = spearmanr(first, gaps)
        return float(test.statistic), float(test.pvalue)

    def to_json(self) -> dict[str, Json]:
        """Strict JSON; an infinite logarithm (a constant of 0) is null."""
        return {
            "analysis": "bound",
            "config": jsonable(self.config),
            "pairs": jsonable(self.pairs),
            "ranking": [pair.name for pair in self.ranking()],
            "agreement": jsonable(self.agreement()),
            "looseness": jsonable([self.pair.looseness(p) for p in self.pair.prefactors]),
            "penalties": jsonable(self.penalties),
            "certificate": jsonable(self.certificate),
        }

    def tables(self) -> list[Table]:
        """Theorem 2, Theorem 3 where labels were asked for, and the ranking where there are other pairs."""
        found = [self.table()]
        if self.penalties:
            found.append(self.penalty_table())
        if len(self.pairs) > 1:
            found.append(self.ranking_table())
        return found

    def table(self) -> Table:
        """Theorem 2: one row a constant and diameter."""
        pair = self.pair
        gap = None if pair.gap is None else pair.gap.value
        rows: list[tuple[Any, ...]] = []
        for p in pair.prefactors:
            loose = pair.looseness(p)
            rows.append(
                (
                    p.constant,
                    p.L,
                    p.diameter,
                    p.D,
                    p.log10,
                    p.log10_bound,
                    gap,
                    loose,
                    None if loose is None else loose >= 0,
                )
            )
        columns = (
            "constant",
            Column(f"L ({self.config.constant})", format=".4g"),
            "diameter",
            Column("its value", format=".4g"),
            Column("log10 prefactor", format=".2f"),
            Column("log10 bound", format=".2f"),
            Column("measured gap", "nats/token", ".4g"),
            Column("log10 bound / gap", format=".2f"),
            "holds",
        )
        paired = (
            "the stores share no samples"
            if pair.paired is None
            else f"{pair.paired:.4g} between a sample's two"
        )
        notes = (
            "|GMI_M - GMI_T| <= (1 + exp(L D)) L E[W1]; L stands for a supremum and is a statistic of local gradient "
            "norms: over positions and channels (as published), or for a shift that all positions share",
            f"distance of mean rows: W1 {pair.w1:.4g} ({pair.n} a side), {paired}; half as many rows: "
            f"{pair.w1_halves:.4g}, and {pair.w1_floor:.4g} between two halves of the modal rows; L W1 = "
            f"{pair.first_order:.4g}",
        )
        return Table(f"Bound on the GMI gap: {pair.name}", columns, rows, notes)

    def penalty_table(self) -> Table:
        """Theorem 3: one row a label."""
        rows = [
            (
                p.label,
                p.n or None,
                p.classes or None,
                p.modal,
                p.text,
                p.loss,
                p.L_h,
                p.w1,
                p.bound,
                p.holds,
                p.ratio,
            )
            for p in self.penalties
        ]
        columns = (
            "label",
            "n",
            "classes",
            Column("E log h, modal", format=".4g"),
            Column("E log h, text", format=".4g"),
            Column("loss", "nats", ".4g"),
            Column("L_h", format=".4g"),
            Column("E[W1]", format=".4g"),
            Column("bound", "nats", ".4g"),
            "holds",
            Column("L_log / L_h", format=".3g"),
        )
        notes = [
            "|E_M log h - E_T log h| <= L_h E[W1], h a softmax probe fitted on modal rows, both sides on the same "
            "held-out rows, W1 within each class; L_h: largest distance between two classes' weights",
            *(f"{p.label}: {p.message}" for p in self.penalties if p.message),
        ]
        return Table(f"Probe penalty: {self.pair.name}", columns, rows, notes)

    def ranking_table(self) -> Table:
        """All pairs by L W1 beside their measured gaps."""
        rows = [
            (
                pair.name,
                pair.L,
                pair.w1,
                pair.first_order,
                None if pair.gap is None else pair.gap.value,
                None if pair.gap is None else pair.gap.low,
                None if pair.gap is None else pair.gap.high,
            )
            for pair in self.ranking()
        ]
        columns = (
            "model / data set",
            Column("L", format=".4g"),
            Column("W1", format=".4g"),
            Column("L W1", format=".4g"),
            Column("GMI gap", format=".4g"),
            Column("low", format=".4g"),
            Column("high", format=".4g"),
        )
        agreed = self.agreement()
        notes = (
            () if agreed is None else (f"Spearman of L W1 with |gap|: {agreed[0]:.2f}, p = {agreed[1]:.2g}",)
        )
        return Table("Pairs by L W1", columns, rows, notes)

    def figure(self) -> Any:
        """The bounds of every pair beside the measured gap, in powers of ten."""
        from modegap.analyses.report.figures import bound_ladder, bound_rows

        return bound_ladder(bound_rows(self))
