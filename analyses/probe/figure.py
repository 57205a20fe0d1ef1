"""The probes' figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.analyses.result import inline

if TYPE_CHECKING:
    from .outcome import ProbeResult


def accuracy_chart(result: ProbeResult) -> Any:
    """Altair layers: lines, points and intervals of the accuracy, and chance as dashes."""
    import altair as alt

    level = result.config.level
    values = [
        {
            "point": cell.point,
            "label": cell.label,
            "accuracy": cell.accuracy,
            "std": cell.accuracy_std,
            "low": ends[0],
            "high": ends[1],
            "information": cell.information,
            "f1": cell.macro_f1,
            "chance": cell.chance,
            "classes": cell.classes,
            "n": cell.n,
        }
        for cell in result.cells
        if cell.accuracy is not None and (ends := cell.interval(level)) is not None
    ]
    data = inline(values)
    x = alt.X("point:N", sort=list(result.points), title=None, axis=alt.Axis(labelAngle=-20))
    colour = alt.Color("label:N", sort=list(result.labels), title="label")
    tooltip = [
        alt.Tooltip("label:N"),
        alt.Tooltip("point:N", title="hook point"),
        alt.Tooltip("accuracy:Q", format=".3f"),
        alt.Tooltip("low:Q", format=".3f"),
        alt.Tooltip("high:Q", format=".3f"),
        alt.Tooltip("std:Q", title="std over seeds", format=".3f"),
        alt.Tooltip("information:Q", title="information (nats)", format=".3f"),
        alt.Tooltip("f1:Q", title="macro F1", format=".3f"),
        alt.Tooltip("chance:Q", format=".3f"),
        alt.Tooltip("classes:Q"),
        alt.Tooltip("n:Q", title="samples"),
    ]
    base = alt.Chart(data).encode(x=x, color=colour)
    y = alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(domain=[0, 1]))
    return (
        base.mark_line().encode(y=y)
        + base.mark_line(strokeDash=[2, 4], opacity=0.5).encode(y=alt.Y("chance:Q", title="test accuracy"))
        + base.mark_rule().encode(y=alt.Y("low:Q", title="test accuracy"), y2="high:Q")
        + base.mark_point(filled=True, size=60).encode(y=y, tooltip=tooltip)
    ).properties(width=560, height=300, title="Probe accuracy along the hook points (dashed: chance)")
