"""Probe accuracy along the hook points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import NEUTRAL

from .axes import Row, grid
from .overview import series_scales

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.probe import ProbeResult


def probe_rows(result: ProbeResult, model: str = "") -> list[dict[str, Any]]:
    """One row for each hook point and label that was fitted, as `probe_curves` takes them."""
    return [
        {
            "label": cell.label,
            "point": cell.point,
            "accuracy": cell.accuracy,
            "std": cell.accuracy_std,
            **dict(zip(("low", "high"), cell.interval(result.config.level) or (None, None), strict=True)),
            "chance": cell.chance,
            "model": model,
        }
        for cell in result.cells
        if cell.accuracy is not None
    ]


def probe_curves(rows: Sequence[Row]) -> alt.ConcatChart:
    """Probe accuracy along the hook points, one panel a label, with error bars and the chance line (dashed).

    Args:
        rows: `label`, `point`, `accuracy` (0..1), `low` and `high` (else `std` over the splits gives the bars, or is
            None), `chance` (0..1) and, to compare models, `model`. Points are drawn in order of first appearance.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no probe rows; expected at least one label at one hook point")
    drawn = [
        {
            "model": "",
            "low": max(row["accuracy"] - (row.get("std") or 0.0), 0.0),
            "high": min(row["accuracy"] + (row.get("std") or 0.0), 1.0),
            **row,
        }
        for row in rows
    ]
    points, labels, models = (
        list(dict.fromkeys(row[key] for row in drawn)) for key in ("point", "label", "model")
    )
    several = len(models) > 1
    columns, width = grid(len(labels))
    x = alt.X("point:N", sort=points, title=None, axis=alt.Axis(labelAngle=-35, labelLimit=140))
    y: dict[str, Any] = {
        "title": "probe accuracy",
        "scale": alt.Scale(domain=[0, 1]),
        "axis": alt.Axis(format="%", tickCount=5),
    }
    legend = alt.Legend(title=None, symbolOpacity=1) if several else None
    color = alt.Color("model:N", scale=series_scales(models)[0], legend=legend)
    tooltip = [
        alt.Tooltip("label:N"),
        alt.Tooltip("point:N", title="hook point"),
        *([alt.Tooltip("model:N")] if several else []),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
        alt.Tooltip("std:Q", title="std over splits", format=".1%"),
        alt.Tooltip("chance:Q", format=".1%"),
    ]

    def panel(label: str) -> alt.LayerChart:
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="label", equal=label))
        chance = base.transform_aggregate(chance="mean(chance)").mark_rule(strokeDash=[5, 4], color=NEUTRAL)
        line = base.mark_line(strokeWidth=1.6, opacity=0.75)
        dots = base.mark_circle(size=32, opacity=1)
        layers = [
            chance.encode(y=alt.Y("chance:Q", **y)),
            line.encode(x=x, y=alt.Y("accuracy:Q", **y), color=color),
            base.mark_rule(strokeWidth=1.4).encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q", color=color),
            dots.encode(x=x, y=alt.Y("accuracy:Q", **y), color=color, tooltip=tooltip),
        ]
        return alt.LayerChart(layer=layers, width=width, height=180, title=alt.Title(label))

    chart: alt.ConcatChart = alt.concat(
        *map(panel, labels), data=alt.InlineData(values=drawn), columns=columns
    )
    return chart
