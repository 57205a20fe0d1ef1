"""What is in the representation and what the decoder can use of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import CATEGORIES, MODALITY_SPECIFIC, NEUTRAL, TEXT_ALIGNED

from .axes import Row

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.gmi import GmiResult

HELD, USED = "in the rows: I(Z;S), lower bound", "used by the decoder: GMI(S|q)"


def law_rows(result: GmiResult) -> list[dict[str, Any]]:
    """One row a law: `law`, `gmi`, `low`, `high`."""
    return [
        {"law": law.law, "gmi": law.gmi.value, "low": law.gmi.low, "high": law.gmi.high}
        for law in result.laws
    ]


def law_bars(rows: Sequence[Row]) -> alt.LayerChart:
    """GMI of the decoder under each law, with intervals.

    Args:
        rows: `law`, `gmi`, `low`, `high`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no laws; expected at least one")
    base = alt.Chart()
    y = alt.Y("law:N", title=None, sort=[row["law"] for row in rows])
    x: dict[str, Any] = {"title": "GMI, nats"}
    color = alt.Color(
        "law:N",
        scale=alt.Scale(domain=["modal", "text"], range=[MODALITY_SPECIFIC, TEXT_ALIGNED]),
        legend=None,
    )
    tooltip = [
        alt.Tooltip("law:N"),
        alt.Tooltip("gmi:Q", title="GMI", format=".4g"),
        alt.Tooltip("low:Q", title="from", format=".4g"),
        alt.Tooltip("high:Q", title="to", format=".4g"),
    ]
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=list(rows)),
        layer=[
            base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **x), x2="high:Q", y=y, color=color),
            base.mark_circle(size=90, opacity=1).encode(
                x=alt.X("gmi:Q", **x), y=y, color=color, tooltip=tooltip
            ),
        ],
    )
    return chart.properties(width=560, height=34 * len(rows) + 30)


def access_rows(result: GmiResult) -> list[dict[str, Any]]:
    """Two rows a label and law that has numbers: `label`, `law`, `kind`, `nats`, `low`, `high`, `entropy`."""
    rows = []
    for one in result.attributes:
        if one.information is None or one.gmi is None:
            continue
        for kind, estimate in ((HELD, one.information), (USED, one.gmi)):
            rows.append(
                {
                    "label": one.label,
                    "law": one.law,
                    "kind": kind,
                    "nats": estimate.value,
                    "low": estimate.low,
                    "high": estimate.high,
                    "entropy": one.entropy,
                }
            )
    return rows


def access_bars(rows: Sequence[Row]) -> alt.VConcatChart:
    """Information in the rows and GMI of the decoder for every label, one panel a law; the tick is H(S).

    Args:
        rows: `label`, `law`, `kind`, `nats`, `low`, `high`, `entropy`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no labels; expected at least one")
    laws = list(dict.fromkeys(row["law"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    top = max(max(row["nats"], row["high"] or 0.0, row["entropy"] or 0.0) for row in rows)
    low = min(0.0, min(row["nats"] for row in rows))
    x: dict[str, Any] = {"title": "nats", "scale": alt.Scale(domain=[low, top * 1.02])}
    y = alt.Y("label:N", title=None, sort=labels)
    offset = alt.YOffset("kind:N", sort=[HELD, USED])
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=[HELD, USED], range=[CATEGORIES[2], TEXT_ALIGNED]),
        legend=alt.Legend(title=None),
    )
    tooltip = [
        alt.Tooltip("label:N"),
        alt.Tooltip("kind:N", title="what"),
        alt.Tooltip("nats:Q", format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("entropy:Q", title="H(S)", format=".3f"),
    ]

    def panel(law: str) -> alt.LayerChart:
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="law", equal=law))
        layers = [
            base.mark_bar(opacity=0.85).encode(
                x=alt.X("nats:Q", **x), y=y, yOffset=offset, color=color, tooltip=tooltip
            ),
            base.mark_rule(color=NEUTRAL, strokeWidth=1.4).encode(
                x=alt.X("low:Q", **x), x2="high:Q", y=y, yOffset=offset
            ),
            base.mark_tick(color=NEUTRAL, thickness=2).encode(x=alt.X("entropy:Q", **x), y=y),
        ]
        title = alt.Title(f"{law} law")
        return alt.LayerChart(layer=layers, width=560, height=max(44 * len(labels), 60), title=title)

    chart: alt.VConcatChart = alt.vconcat(*map(panel, laws), data=alt.InlineData(values=list(rows)))
    return chart
