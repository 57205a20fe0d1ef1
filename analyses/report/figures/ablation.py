"""What removing modes does to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import MODALITY_SPECIFIC, NEUTRAL, TEXT_ALIGNED

from .axes import Row, finite

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.ablate import AblationResult, Sweep


def ablation_rows(result: AblationResult) -> list[dict[str, Any]]:
    """One row a condition, and one (`draw` true) for each draw of a random control, for `ablation_effect`."""
    rows: list[dict[str, Any]] = []
    for condition in result.conditions:
        change = condition.change
        rows.append(
            {
                "condition": condition.name,
                "delta": change.percent,
                "low": change.percent_low,
                "high": change.percent_high,
                "modes": condition.n_modes,
                "variance": condition.variance,
                "p": change.p,
                "draw": False,
            }
        )
        if len(condition.draws) > 1:
            rows += [
                {
                    "condition": condition.name,
                    "delta": draw.change.percent,
                    "variance": draw.variance,
                    "draw": True,
                }
                for draw in condition.draws
            ]
    return rows


def ablation_effect(rows: Sequence[Row]) -> alt.LayerChart:
    """Change of the loss when modes are removed: one line a condition, and random draws as a strip.

    Conditions whose name starts with `ms` are orange, `ta` blue, others grey.

    Args:
        rows: `condition`, `delta` (percent of the loss without ablation); of a condition also `low` and
            `high` (interval, or None), `modes` (how many were removed), `variance` (their share, 0..1) and
            `p`; of a single random draw `draw`, true.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no ablation rows; expected at least one condition")
    empty = {"low": None, "high": None, "modes": None, "variance": None, "p": None, "draw": False}
    drawn = [{**empty, **row} for row in rows]
    order = list(dict.fromkeys(row["condition"] for row in drawn))
    signed = "datum.value == 0 ? '0' : format(datum.value, '+~g')"
    x: dict[str, Any] = {
        "title": "change of loss, % (below 0: better)",
        "axis": alt.Axis(grid=True, tickCount=8, labelExpr=signed),
    }
    y = alt.Y("condition:N", sort=order, title=None, axis=alt.Axis(labelLimit=220, grid=False))
    palette = alt.Scale(domain=order, range=[_color(name) for name in order])
    color = alt.Color("condition:N", scale=palette, legend=None)
    tooltip = [
        alt.Tooltip("condition:N"),
        alt.Tooltip("delta:Q", title="change of loss, %", format="+.3f"),
        alt.Tooltip("low:Q", title="from", format="+.3f"),
        alt.Tooltip("high:Q", title="to", format="+.3f"),
        alt.Tooltip("modes:Q", title="modes removed"),
        alt.Tooltip("variance:Q", title="variance removed", format=".1%"),
        alt.Tooltip("p:Q", title="p (paired)", format=".2g"),
    ]
    base = alt.Chart()
    draws = base.transform_filter(alt.FieldEqualPredicate(field="draw", equal=True))
    effects = base.transform_filter(alt.FieldEqualPredicate(field="draw", equal=False))
    zero = base.transform_aggregate(rows="count()").transform_calculate(zero="0").mark_rule(color=NEUTRAL)
    strip = draws.mark_tick(thickness=1.5, size=16, opacity=0.65, color=NEUTRAL)
    spans = effects.mark_rule(strokeWidth=2)
    dots = effects.mark_circle(size=80, opacity=1)
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=drawn),
        layer=[
            zero.encode(x=alt.X("zero:Q", **x)),
            strip.encode(x=alt.X("delta:Q", **x), y=y, tooltip=[*tooltip[:2], tooltip[5]]),
            spans.encode(x=alt.X("low:Q", **x), x2="high:Q", y=y, color=color),
            dots.encode(x=alt.X("delta:Q", **x), y=y, color=color, tooltip=tooltip),
        ],
    )
    return chart.properties(width=600, height=max(34 * len(order), 80))


def _color(condition: str) -> str:
    name = condition.lower()
    return MODALITY_SPECIFIC if name.startswith("ms") else TEXT_ALIGNED if name.startswith("ta") else NEUTRAL


def sweep_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """One row a mode for `sweep_effect`."""
    return [
        {
            "mode": int(mode),
            "delta": float(sweep.percent[i]),
            "low": float(sweep.percent_low[i]),
            "high": float(sweep.percent_high[i]),
            "rho": finite(sweep.rho[i]),
            "q": finite(sweep.q_bh[i]),
            "found": bool(sweep.q_bh[i] <= 0.05),
        }
        for i, mode in enumerate(sweep.modes.tolist())
    ]


def sweep_effect(rows: Sequence[Row]) -> alt.LayerChart:
    """Change of the loss when each mode is removed alone; modes with q <= 0.05 in orange, with intervals.

    Args:
        rows: `mode`, `delta`, `low`, `high` (percent of the loss without ablation), `rho`, `q`, `found`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no modes; expected at least one")
    base = alt.Chart()
    x = alt.X("mode:Q", title="mode, by variance")
    y: dict[str, Any] = {"title": "change of loss, % (below 0: better)"}
    color = alt.Color(
        "found:N",
        scale=alt.Scale(domain=[True, False], range=[MODALITY_SPECIFIC, NEUTRAL]),
        legend=alt.Legend(title=None, labelExpr="datum.value ? 'q ≤ 0.05' : 'not distinguishable from 0'"),
    )
    tooltip = [
        alt.Tooltip("mode:Q"),
        alt.Tooltip("delta:Q", title="change of loss, %", format="+.4f"),
        alt.Tooltip("low:Q", title="from", format="+.4f"),
        alt.Tooltip("high:Q", title="to", format="+.4f"),
        alt.Tooltip("rho:Q", title="ρ", format=".3g"),
        alt.Tooltip("q:Q", title="q (Benjamini, Hochberg)", format=".2g"),
    ]
    spans = base.transform_filter(alt.FieldEqualPredicate(field="found", equal=True))
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=list(rows)),
        layer=[
            spans.mark_rule(opacity=0.6).encode(x=x, y=alt.Y("low:Q", **y), y2="high:Q", color=color),
            base.mark_circle(size=28, opacity=0.9).encode(
                x=x, y=alt.Y("delta:Q", **y), color=color, tooltip=tooltip
            ),
        ],
    )
    return chart.properties(width=640, height=260)
