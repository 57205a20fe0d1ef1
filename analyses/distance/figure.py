"""The distances' figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.analyses.result import inline

if TYPE_CHECKING:
    from .outcome import DistanceResult

_PANELS = ("W1", "sliced W1", "Gaussian W2", "MMD²", "CKA", "participation ratio")


def distance_rows(result: DistanceResult, model: str = "") -> list[dict[str, Any]]:
    """One row a measure, law and hook point: `model`, `measure`, `series`, `point`, `value`, `low`, `high`."""
    rows: list[dict[str, Any]] = []

    def add(measure: str, series: str, point: str, value: float | None, *ends: float | None) -> None:
        if value is not None:
            low, high = ends or (None, None)
            rows.append(
                {
                    "model": model,
                    "measure": measure,
                    "series": series,
                    "point": point,
                    "value": value,
                    "low": low,
                    "high": high,
                }
            )

    for p in result.pairs:
        if p.w1 is not None:
            finite = result.config.bootstrap > 0
            add("W1", "modal to text", p.point, p.w1.value, *((p.w1.low, p.w1.high) if finite else ()))
        add("W1", "one law, two samples", p.point, p.w1_floor)
        add("sliced W1", "modal to text", p.point, p.sliced)
        add("Gaussian W2", "modal to text", p.point, p.gaussian_w2)
        if p.mmd2 is not None:
            add("MMD²", "modal to text", p.point, p.mmd2.value, p.mmd2.low, p.mmd2.high)
        add("CKA", "modal to text", p.point, p.cka)
        add("participation ratio", "modal", p.point, p.participation)
        add("participation ratio", "text", p.point, p.participation_text)
    return rows


def distance_chart(result: DistanceResult) -> Any:
    """Altair panels, one a measure: points with intervals along the hook points."""
    import altair as alt

    rows = distance_rows(result)
    points = [p.point for p in result.pairs]
    series = list(dict.fromkeys(row["series"] for row in rows))
    x = alt.X("point:N", sort=points, title=None, axis=alt.Axis(labelAngle=-30, labelLimit=140))
    color = alt.Color("series:N", scale=alt.Scale(domain=series), title=None)
    tooltip = [
        alt.Tooltip("series:N"),
        alt.Tooltip("point:N", title="hook point"),
        alt.Tooltip("value:Q", format=".4g"),
        alt.Tooltip("low:Q", format=".4g"),
        alt.Tooltip("high:Q", format=".4g"),
    ]

    def panel(measure: str) -> Any:
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="measure", equal=measure))
        y = alt.Y("value:Q", title=measure, scale=alt.Scale(zero=True))
        bars = base.transform_filter("isValid(datum.low)").mark_rule()
        bars = bars.encode(x=x, y=alt.Y("low:Q", title=measure), y2="high:Q", color=color)
        known = any(row["measure"] == measure and row["low"] is not None for row in rows)
        return alt.LayerChart(
            layer=[
                base.mark_line(opacity=0.5).encode(x=x, y=y, color=color),
                *([bars] if known else []),
                base.mark_point(filled=True, size=50).encode(x=x, y=y, color=color, tooltip=tooltip),
            ],
            width=230,
            height=170,
            title=alt.Title(measure),
        )

    shown = [measure for measure in _PANELS if any(row["measure"] == measure for row in rows)]
    return alt.concat(*map(panel, shown), data=inline(rows), columns=2).resolve_scale(y="independent")
