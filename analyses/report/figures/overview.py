"""Several models in one figure: probes along the pipeline (the paper's figure 1), losses, and L W1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import CATEGORIES, MODALITY_SPECIFIC, NEUTRAL, TEXT_ALIGNED

from .axes import Row, grid, log_axis

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.ablate import AblationResult

# Blue first; more than seven series repeat the colours with another shape.
PALETTE = (TEXT_ALIGNED, MODALITY_SPECIFIC, *CATEGORIES[2:])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")


def series_scales(names: Sequence[str]) -> tuple[alt.Scale, alt.Scale]:
    """Colours and shapes that tell the names apart."""
    import altair as alt

    count = len(PALETTE)
    colors = [PALETTE[i % count] for i in range(len(names))]
    shapes = [SHAPES[(i // count) % len(SHAPES)] for i in range(len(names))]
    return alt.Scale(domain=list(names), range=colors), alt.Scale(domain=list(names), range=shapes)


def probe_overview(rows: Sequence[Row]) -> alt.ConcatChart:
    """Probe accuracy along the hook points, one panel a model, one line a label, with intervals and chance (dashed).

    Args:
        rows: `model`, `label`, `point`, `accuracy`, `low`, `high` (or None) and `chance`. Points are drawn in order
            of first appearance.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no probe rows; expected at least one label at one hook point")
    points, labels, models = (
        list(dict.fromkeys(row[key] for row in rows)) for key in ("point", "label", "model")
    )
    columns, width = grid(len(models))
    colors, shapes = series_scales(labels)
    axis = alt.Axis(labelAngle=-35, labelLimit=140)
    y: dict[str, Any] = {
        "title": "probe accuracy",
        "scale": alt.Scale(domain=[0, 1]),
        "axis": alt.Axis(format="%", tickCount=5),
    }
    color = alt.Color("label:N", scale=colors, legend=alt.Legend(title=None, symbolOpacity=1))
    shape = alt.Shape("label:N", scale=shapes, title=None)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("label:N"),
        alt.Tooltip("point:N", title="hook point"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("low:Q", title="from", format=".1%"),
        alt.Tooltip("high:Q", title="to", format=".1%"),
        alt.Tooltip("chance:Q", format=".1%"),
    ]

    def panel(model: str) -> alt.LayerChart:
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="model", equal=model))
        own = [point for point in points if any((r["model"], r["point"]) == (model, point) for r in rows)]
        at = alt.X("point:N", sort=own, title=None, axis=axis)
        layers = [
            base.mark_line(strokeDash=[2, 4], opacity=0.45).encode(
                x=at, y=alt.Y("chance:Q", **y), color=color
            ),
            base.mark_line(strokeWidth=1.6, opacity=0.75).encode(
                x=at, y=alt.Y("accuracy:Q", **y), color=color
            ),
            base.mark_rule(strokeWidth=1.4).encode(x=at, y=alt.Y("low:Q", **y), y2="high:Q", color=color),
            base.mark_point(filled=True, size=36, opacity=1).encode(
                x=at, y=alt.Y("accuracy:Q", **y), color=color, shape=shape, tooltip=tooltip
            ),
        ]
        return alt.LayerChart(layer=layers, width=width, height=200, title=alt.Title(model))

    chart: alt.ConcatChart = alt.concat(
        *map(panel, models), data=alt.InlineData(values=list(rows)), columns=columns
    )
    return chart


def change_rows(result: AblationResult, model: str) -> list[dict[str, Any]]:
    """One row a condition: `model`, `condition`, `percent`, `low`, `high`, `modes`."""
    return [
        {
            "model": model,
            "condition": condition.name,
            "percent": condition.change.percent,
            "low": condition.change.percent_low,
            "high": condition.change.percent_high,
            "modes": condition.n_modes,
        }
        for condition in result.conditions
    ]


def changes(rows: Sequence[Row]) -> alt.LayerChart:
    """Change of the loss with its interval, one line a model, one mark a condition.

    Args:
        rows: `model`, `condition`, `percent`, `low`, `high`, `modes`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no ablation rows; expected at least one condition")
    models, conditions = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "condition"))
    known = {"ms": MODALITY_SPECIFIC, "ta": TEXT_ALIGNED}
    spare = iter(CATEGORIES[2:] * len(conditions))
    colors = [known.get(name, NEUTRAL if name.startswith("random") else next(spare)) for name in conditions]
    signed = "datum.value == 0 ? '0' : format(datum.value, '+~g')"
    axis = alt.Axis(grid=True, tickCount=8, labelExpr=signed)
    x: dict[str, Any] = {"title": "change of loss, % (below 0: better)", "axis": axis}
    color = alt.Color(
        "condition:N", scale=alt.Scale(domain=conditions, range=colors), legend=alt.Legend(title="removed")
    )
    y = alt.Y("model:N", sort=models, title=None, axis=alt.Axis(labelLimit=220, grid=True))
    offset = alt.YOffset("condition:N", sort=conditions)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("condition:N", title="removed"),
        alt.Tooltip("percent:Q", title="change of loss, %", format="+.3f"),
        alt.Tooltip("low:Q", title="from", format="+.3f"),
        alt.Tooltip("high:Q", title="to", format="+.3f"),
        alt.Tooltip("modes:Q", title="modes removed"),
    ]
    base = alt.Chart()
    zero = base.transform_aggregate(n="count()").transform_calculate(zero="0").mark_rule(color=NEUTRAL)
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=list(rows)),
        layer=[
            zero.encode(x=alt.X("zero:Q", **x)),
            base.mark_rule(strokeWidth=2).encode(
                x=alt.X("low:Q", **x), x2="high:Q", y=y, yOffset=offset, color=color
            ),
            base.mark_circle(size=70, opacity=1).encode(
                x=alt.X("percent:Q", **x), y=y, yOffset=offset, color=color, tooltip=tooltip
            ),
        ],
    )
    return chart.properties(width=600, height=max((12 * len(conditions) + 14) * len(models), 80))


def degradation_scatter(rows: Sequence[Row]) -> alt.LayerChart:
    """What probes lose in the decoder against L W1: a small dot a label, a large one with its interval a model.

    Args:
        rows: `study`, `label`, `lw1` with `low` and `high` (or None), `lost` and the study's `mean`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no rows; expected at least one label of one study")
    studies = list(dict.fromkeys(row["study"] for row in rows))
    colors, shapes = series_scales(studies)
    ends = [row[key] for row in rows for key in ("lw1", "low", "high")]
    x = log_axis("L W1", ends)
    y: dict[str, Any] = {"title": "lost above chance", "axis": alt.Axis(format="%")}
    color = alt.Color("study:N", scale=colors, title=None)
    shape = alt.Shape("study:N", scale=shapes, title=None)
    head = [alt.Tooltip("study:N"), alt.Tooltip("lw1:Q", title="L W1", format=".4g")]
    base = alt.Chart()
    means = base.transform_aggregate(lw1="max(lw1)", low="max(low)", high="max(high)", mean="max(mean)",
                                     groupby=["study"])  # fmt: skip
    zero = base.transform_aggregate(n="count()").transform_calculate(zero="0").mark_rule(color=NEUTRAL)
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=list(rows)),
        layer=[
            zero.encode(y=alt.Y("zero:Q", **y)),
            base.mark_point(filled=True, size=26, opacity=0.5).encode(
                x=alt.X("lw1:Q", **x),
                y=alt.Y("lost:Q", **y),
                color=color,
                shape=shape,
                tooltip=[*head, alt.Tooltip("label:N"), alt.Tooltip("lost:Q", format="+.1%")],
            ),
            means.transform_filter("isValid(datum.low) && datum.low > 0")
            .mark_rule(strokeWidth=1.6)
            .encode(x=alt.X("low:Q", **x), x2="high:Q", y=alt.Y("mean:Q", **y), color=color),
            means.mark_point(filled=True, size=130, opacity=1).encode(
                x=alt.X("lw1:Q", **x),
                y=alt.Y("mean:Q", **y),
                color=color,
                shape=shape,
                tooltip=[*head, alt.Tooltip("mean:Q", title="mean lost", format="+.1%")],
            ),
        ],
    )
    return chart.properties(width=560, height=300)
