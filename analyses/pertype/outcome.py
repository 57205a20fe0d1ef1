"""The result of the per-type analysis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.result import Column, Json, NotebookRepr, Table, inline, jsonable

from .config import PertypeConfig

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate


@dataclass(frozen=True, slots=True)
class TypeAlignment:
    """Where the classes of one label differ; `message` says why the numbers are missing, where they are.

    S_B is the between-class scatter; fractions are of tr S_B.

    Attributes:
        label: label column.
        n: rows with a class.
        classes: number of classes.
        ms: fraction in the span of the modality-specific modes.
        ta: fraction in the span of the text-aligned modes.
        ms_clear: as `ms`, of S_B less the scatter that the spread within classes alone gives their means
            ((C - 1) / (n - C) of the within-class scatter); None where nothing is left.
        ms_variance: fraction of these rows' whole variance in the same span: `ms` of a label without meaning.
        alignment: sum_k c_k rho_k with c_k = u_k' S_B u_k / tr S_B, over the modes with a rho.
        covered: sum of these c_k.
        dimension: dimensions of both spans in W1.
        w1_ms: mean W1 between classes in the modality-specific span.
        w1_ta: in the text-aligned span.
        w1_ms_floor: the same between groups of rows drawn without regard to the class.
        w1_ta_floor: likewise.
        pairs: pairs of classes behind the four.
        degradation: probe accuracy lost between the two hook points, (a - chance) / (1 - chance) at each; positive
            is a loss.
        message: what is missing, and why.
    """

    label: str
    n: int = 0
    classes: int = 0
    ms: float | None = None
    ta: float | None = None
    ms_clear: float | None = None
    ms_variance: float | None = None
    alignment: float | None = None
    covered: float | None = None
    dimension: int = 0
    w1_ms: float | None = None
    w1_ta: float | None = None
    w1_ms_floor: float | None = None
    w1_ta_floor: float | None = None
    pairs: int = 0
    degradation: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman correlation across labels of a number with the degradation.

    Attributes:
        of: the number.
        n: labels.
        rho: Spearman's.
        p: two-sided, over all permutations where there are at most 8 labels, else over 9,999 random ones.
    """

    of: str
    n: int
    rho: float
    p: float


@dataclass(frozen=True, slots=True)
class PertypeResult(NotebookRepr):
    """Which information lies along modality-specific modes.

    Attributes:
        config: the options used.
        point: hook point.
        text_point: hook point of the text law behind the modes.
        rows: `tokens` or `pooled`.
        threshold: modes with rho below it are modality-specific.
        n_ms: modality-specific modes.
        n_ta: text-aligned modes.
        types: one entry a label.
        correlations: with the probe degradation, where probes were given.
        certificate: of the labelled rows.
    """

    config: PertypeConfig
    point: str
    text_point: str
    rows: str
    threshold: float
    n_ms: int
    n_ta: int
    types: tuple[TypeAlignment, ...]
    correlations: tuple[Correlation, ...]
    certificate: Certificate

    def of(self, label: str) -> TypeAlignment:
        """The entry of a label.

        Raises:
            KeyError: a label that was not analysed.
        """
        for entry in self.types:
            if entry.label == label:
                return entry
        raise KeyError(f"no label {label!r}; there are {', '.join(t.label for t in self.types)}")

    def to_json(self) -> dict[str, Json]:
        """Strict JSON."""
        names = ("config", "point", "text_point", "rows", "threshold", "n_ms", "n_ta", "types",
                 "correlations", "certificate")  # fmt: skip
        return {"analysis": "pertype", **{name: jsonable(getattr(self, name)) for name in names}}

    def table(self) -> Table:
        """One row a label."""
        columns = (
            "label",
            Column("S_B in MS", "%", ".1f"),
            Column("clear of noise", "%", ".1f"),
            Column("S_B in TA", "%", ".1f"),
            Column("variance in MS", "%", ".1f"),
            Column("Σ c ρ", format=".3g"),
            Column("W1 in MS", format=".3g"),
            Column("floor, MS", format=".3g"),
            Column("W1 in TA", format=".3g"),
            Column("floor, TA", format=".3g"),
            Column("probe degradation", format="+.3f"),
            "classes",
            "rows",
        )

        def percent(value: float | None) -> float | None:
            return None if value is None else 100 * value

        rows = [
            (
                t.label,
                percent(t.ms),
                percent(t.ms_clear),
                percent(t.ta),
                percent(t.ms_variance),
                t.alignment,
                t.w1_ms,
                t.w1_ms_floor,
                t.w1_ta,
                t.w1_ta_floor,
                t.degradation,
                t.classes,
                t.n,
            )
            for t in self.types
        ]
        return Table("Where the classes of each label differ", columns, rows, self._notes())

    def figure(self) -> Any:
        """Fractions of the between-class scatter, one bar a label."""
        import altair as alt

        rows = [
            {"label": t.label, "span": span, "fraction": value, "variance": t.ms_variance}
            for t in self.types
            if t.ms is not None and t.ta is not None
            for span, value in (
                ("modality-specific", t.ms),
                ("text-aligned", t.ta),
                ("neither", 1 - t.ms - t.ta),
            )
        ]
        order = ["modality-specific", "text-aligned", "neither"]
        base = alt.Chart(inline(rows))
        y = alt.Y("label:N", title=None, sort=[t.label for t in self.types])
        bars = base.mark_bar().encode(
            y=y,
            x=alt.X("fraction:Q", title="share of the between-class scatter", axis=alt.Axis(format="%")),
            color=alt.Color("span:N", sort=order, title=None),
            order=alt.Order("rank:Q"),
            tooltip=["label:N", "span:N", alt.Tooltip("fraction:Q", format=".1%")],
        )
        bars = bars.transform_calculate(rank=f"indexof({order}, datum.span)")
        ticks = base.transform_filter("datum.span == 'modality-specific'").mark_tick(
            thickness=2, color="black"
        )
        return (bars + ticks.encode(y=y, x=alt.X("variance:Q"))).properties(width=480)

    def _notes(self) -> tuple[str, ...]:
        source, target = self.config.degradation
        notes = [
            f"{self.point} ({self.rows} rows) against {self.text_point}: {self.n_ms} modality-specific modes (MS, "
            f"ρ < {self.threshold:g}), {self.n_ta} text-aligned (TA)",
            "variance in MS is what a label without meaning would have; clear of noise takes off what the spread "
            "within classes gives the class means",
            "W1: mean over pairs of classes, the leading modes of each span at the same number of dimensions; floor: "
            "groups of rows drawn without regard to the class",
            f"probe degradation from {source} to {target}, (a - chance) / (1 - chance)",
        ]
        notes += [
            f"Spearman of {c.of} with the degradation over {c.n} labels: {c.rho:+.2f}, p = {c.p:.2g} (permutations)"
            for c in self.correlations
        ]
        notes += [f"{t.label}: {t.message}" for t in self.types if t.message]
        return tuple(notes)
