"""The result of an ablation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.replayed.opening import notes_of
from modegap.analyses.result import Column, Json, NotebookRepr, Table, jsonable

from .config import AblateConfig
from .statistics import Paired
from .subsets import Subset
from .sweep import Sweep

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One subset's losses.

    Attributes:
        subset: the modes removed.
        variance: their share of the considered modes' variance.
        variance_total: their share of the whole variance.
        loss: per-sample loss with the modes removed, nats a token [n].
        change: against no ablation.
    """

    subset: Subset
    variance: float
    variance_total: float
    loss: NDArray[np.float64]
    change: Paired


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """All draws of one named subset: one draw, but for `random*N`.

    Attributes:
        name: as asked for.
        draws: in the order of their seeds.
        change: of the per-sample loss averaged over the draws.
    """

    name: str
    draws: tuple[Draw, ...]
    change: Paired

    @property
    def n_modes(self) -> int:
        """How many modes each draw removes."""
        return len(self.draws[0].subset.indices)

    @property
    def variance(self) -> float:
        """Share of the considered modes' variance removed, mean over the draws."""
        return float(np.mean([draw.variance for draw in self.draws]))

    @property
    def variance_total(self) -> float:
        """Share of the whole variance removed, mean over the draws."""
        return float(np.mean([draw.variance_total for draw in self.draws]))

    @property
    def percents(self) -> NDArray[np.float64]:
        """Change of the loss of every draw, percent."""
        return np.array([draw.change.percent for draw in self.draws])

    @property
    def percent_std(self) -> float | None:
        """Standard deviation of the change over the draws, ddof 1; None for a single draw."""
        return float(self.percents.std(ddof=1)) if len(self.draws) > 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class AblationResult(NotebookRepr):
    """Change of the target tokens' cross-entropy when modes are projected out.

    Attributes:
        config: the options used.
        model: name of the model.
        point: hook point that was edited.
        ids: samples, in the order of the losses.
        baseline: per-sample loss without ablation, nats a token [n].
        conditions: in the order asked for.
        left_out: subsets without modes, and why.
        certificate: of the modes, with the path that projected them out.
        sweep: every mode removed alone; None unless asked for.
        failures: (id, reason) of samples that could not be scored.
        retried: batches that ran again at half their size.
    """

    config: AblateConfig
    model: str
    point: str
    ids: tuple[str, ...]
    baseline: NDArray[np.float64]
    conditions: tuple[Condition, ...]
    left_out: tuple[str, ...]
    certificate: Certificate
    sweep: Sweep | None = None
    failures: tuple[tuple[str, str], ...] = ()
    retried: int = 0

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.baseline)

    def condition(self, name: str) -> Condition:
        """The condition of that name.

        Raises:
            KeyError: it was not measured.
        """
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise KeyError(f"no condition {name!r}, only {', '.join(c.name for c in self.conditions)}")

    def below_random(self, name: str) -> float | None:
        """Share of the random draws whose change is at most that of condition `name`; None without draws."""
        random = [c for c in self.conditions if c.name.startswith("random") and c.name != name]
        if not random:
            return None
        draws = np.concatenate([c.percents for c in random])
        return float((draws <= self.condition(name).change.percent).mean())

    def to_json(self) -> dict[str, Json]:
        """Strict JSON with every sample's loss under every draw."""
        conditions = [
            {
                "name": c.name,
                "modes": c.n_modes,
                "variance": c.variance,
                "variance_total": c.variance_total,
                **asdict(c.change),
                "percent_std": c.percent_std,
                "below_random": self.below_random(c.name),
                "draws": [
                    {
                        "seed": draw.subset.seed,
                        "modes": draw.subset.indices,
                        "variance": draw.variance,
                        "variance_total": draw.variance_total,
                        **asdict(draw.change),
                        "loss": draw.loss,
                    }
                    for draw in c.draws
                ],
            }
            for c in self.conditions
        ]
        return {
            "analysis": "ablate",
            "config": jsonable(self.config),
            "model": self.model,
            "point": self.point,
            "n": self.n,
            "ids": jsonable(self.ids),
            "baseline": jsonable(self.baseline),
            "baseline_mean": jsonable(self.baseline.mean()),
            "conditions": jsonable(conditions),
            "left_out": jsonable(self.left_out),
            "sweep": jsonable(self.sweep),
            "failures": jsonable(self.failures),
            "retried": self.retried,
            "certificate": jsonable(self.certificate),
        }

    def table(self) -> Table:
        """The paper's Table 2 with all conditions, intervals, tests and the spread of the random control."""
        rows: list[tuple[str | float | int | None, ...]] = [
            ("none", 0, 0.0, float(self.baseline.mean()), 0.0, 0.0, *[None] * 6, self.n)
        ]
        for c in self.conditions:
            below = self.below_random(c.name)
            rows.append(
                (
                    c.name,
                    c.n_modes,
                    100 * c.variance,
                    float(self.baseline.mean() + c.change.mean_delta),
                    c.change.mean_delta,
                    c.change.percent,
                    c.change.percent_low,
                    c.change.percent_high,
                    c.change.t,
                    c.change.p,
                    c.percent_std,
                    None if below is None else 100 * below,
                    c.change.n,
                )
            )
        columns = (
            "removed",
            "modes",
            Column("variance", "%", ".1f"),
            Column("loss", format=".4f"),
            Column("Δ loss", format="+.4f"),
            Column("change", "%", "+.2f"),
            Column("low", "%", "+.2f"),
            Column("high", "%", "+.2f"),
            Column("t", format=".2f"),
            Column("p", format=".2g"),
            Column("std of draws", "%", ".2f"),
            Column("random ≤", "%", ".0f"),
            Column("n"),
        )
        return Table(f"Modes projected out at {self.point} of {self.model}", columns, rows, self._notes())

    def tables(self) -> list[Table]:
        """The conditions, then the sweep where there is one."""
        return [self.table(), *([self.sweep_table()] if self.sweep is not None else [])]

    def sweep_table(self, first: int = 20) -> Table:
        """The `first` modes whose removal changes the loss most.

        Raises:
            ValueError: no sweep was asked for.
        """
        if self.sweep is None:
            raise ValueError("no sweep: ablate with the subset 'each' or 'each*K'")
        s = self.sweep
        order = np.argsort(-np.abs(s.delta), kind="stable")[:first]
        values = (s.rho, 100 * s.variance, s.delta, s.percent, s.percent_low, s.percent_high, s.t)
        chances = (s.p, s.p_holm, s.q_bh)
        rows = [
            (int(s.modes[i]), *(float(column[i]) for column in (*values, *chances))) for i in order.tolist()
        ]
        columns = (
            "mode",
            Column("ρ", format=".3g"),
            Column("variance", "% of all", ".2f"),
            Column("Δ loss", format="+.5f"),
            Column("change", "%", "+.3f"),
            Column("low", "%", "+.3f"),
            Column("high", "%", "+.3f"),
            Column("t", format=".2f"),
            Column("p", format=".2g"),
            Column("p Holm", format=".2g"),
            Column("q BH", format=".2g"),
        )
        notes = (
            f"{len(s.modes)} modes removed one at a time, the {len(rows)} of the largest change shown; "
            f"{len(s.found())} have q ≤ 0.05 (Benjamini and Hochberg), {int((s.p_holm <= 0.05).sum())} p ≤ 0.05 (Holm)",
        )
        return Table(f"Single modes removed at {self.point} of {self.model}", columns, rows, notes)

    def figure(self) -> Any:
        """Change of the loss by condition with intervals, and every random draw; of a sweep alone by mode."""
        from modegap.analyses.report.figures import ablation_effect, ablation_rows, sweep_effect, sweep_rows

        if not self.conditions and self.sweep is not None:
            return sweep_effect(sweep_rows(self.sweep))
        return ablation_effect(ablation_rows(self))

    def _notes(self) -> tuple[str, ...]:
        paper = self.config.target == "paper"
        scored = "the prompt's own tokens (as published)" if paper else "the target tokens"
        return (
            "z' = z - U U'z at every position, the mean's component included, as published",
            f"loss: cross-entropy of {scored}, nats a token, mean over a sample's tokens, then over "
            "n samples; variance: of the modes removed, in percent of the considered modes'",
            f"low, high: {100 * self.config.level:g} % bootstrap over samples of the change; t, p: paired",
            "random rows average their draws sample by sample; std of draws: between them; random ≤: share "
            "of the random draws whose change is at most this row's",
            *self.left_out,
            *notes_of(self.failures, self.retried),
        )
