"""The intervention's figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import CATEGORIES, NEUTRAL
from modegap.analyses.result import inline

from .outcome import cell_of
from .tables import title_of

if TYPE_CHECKING:
    from .outcome import LoraResult

TASK = "asked: the choice the decoder holds most probable"


def intervention_rows(result: LoraResult) -> list[dict[str, Any]]:
    """One row a decoder, label and kind: `decoder`, `label`, `kind`, `accuracy`, `low`, `high`, `chance`."""
    rows: list[dict[str, Any]] = []
    probed = f"probed at {result.final_point}"
    for arm in result.arms:
        decoder = title_of(result, arm.name)
        for asked in arm.asked:
            found = asked.accuracy
            rows.append(_row(decoder, asked.label, TASK, found.value, found.low, found.high, asked.chance))
        for label in arm.probes.labels:
            cell = cell_of(arm.probes, label, result.final_point)
            if cell is None or cell.accuracy is None:
                continue
            low, high = cell.interval(result.config.level) or (None, None)
            rows.append(_row(decoder, label, probed, cell.accuracy, low, high, cell.chance))
    return rows


def intervention_chart(result: LoraResult) -> Any:
    """Two panels, asked and probed: accuracy of every label with its interval, one mark a decoder, ticks at chance."""
    import altair as alt

    rows = intervention_rows(result)
    decoders = [title_of(result, arm.name) for arm in result.arms]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    labels = [result.label, *(label for label in labels if label != result.label)]
    colour = alt.Color(
        "decoder:N",
        scale=alt.Scale(domain=decoders, range=[NEUTRAL, *CATEGORIES[:2]][: len(decoders)]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    x: dict[str, Any] = {"title": "accuracy", "scale": alt.Scale(domain=[0, 1])}
    offset = alt.YOffset("decoder:N", sort=decoders)
    tooltip = [
        alt.Tooltip("decoder:N"),
        alt.Tooltip("label:N"),
        alt.Tooltip("accuracy:Q", format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("chance:Q", format=".3f"),
    ]

    def panel(kind: str) -> Any:
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="kind", equal=kind))
        here = [label for label in labels if any((r["kind"], r["label"]) == (kind, label) for r in rows)]
        y = alt.Y("label:N", title=None, sort=here)
        layers = [
            base.mark_tick(color=NEUTRAL, thickness=1.5, height=14).encode(x=alt.X("chance:Q", **x), y=y),
            base.mark_rule(strokeWidth=2).encode(
                x=alt.X("low:Q", **x), x2="high:Q", y=y, yOffset=offset, color=colour
            ),
            base.mark_circle(size=70, opacity=1).encode(
                x=alt.X("accuracy:Q", **x), y=y, yOffset=offset, color=colour, tooltip=tooltip
            ),
        ]
        return alt.LayerChart(layer=layers, width=560, height=max(46 * len(here), 60), title=alt.Title(kind))

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return alt.vconcat(*map(panel, kinds), data=inline(rows))


def _row(
    decoder: str,
    label: str,
    kind: str,
    accuracy: float,
    low: float | None,
    high: float | None,
    chance: float | None,
) -> dict[str, Any]:
    return {
        "decoder": decoder,
        "label": label,
        "kind": kind,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "chance": chance,
    }
