"""The alignment's figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from modegap.analyses.result import inline

if TYPE_CHECKING:
    from .modes import Modes


def modes_chart(modes: Modes) -> Any:
    """Altair: rho by mode (log scale, intervals, threshold) above the cumulative variance."""
    import altair as alt

    cumulative = modes.cumulative_variance
    total = modes.eigenvalues.sum()
    threshold = modes.config.threshold
    values = []
    for k in modes.considered.tolist():
        rho, low, high = (float(v[k]) for v in (modes.rho, modes.rho_low, modes.rho_high))
        values.append(
            {
                "mode": k,
                "rho": rho if rho > 0 else None,
                "low": low if math.isfinite(low) and low > 0 else None,
                "high": high if math.isfinite(high) and low > 0 else None,
                "eigenvalue": float(modes.eigenvalues[k]),
                "share": float(modes.eigenvalues[k] / total),
                "cumulative": float(cumulative[k]),
                "kind": "modality-specific" if rho < threshold else "text-aligned",
            }
        )
    data = inline(values)
    x = alt.X("mode:Q", title="mode, by variance", scale=alt.Scale(nice=False, padding=8))
    kind = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=["modality-specific", "text-aligned"]),
        legend=alt.Legend(orient="top"),
    )
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=["modality-specific", "text-aligned"]))
    tooltip = [
        alt.Tooltip("mode:Q"),
        alt.Tooltip("kind:N", title="class"),
        alt.Tooltip("rho:Q", title="ρ", format=".3g"),
        alt.Tooltip("low:Q", title="ρ low", format=".3g"),
        alt.Tooltip("high:Q", title="ρ high", format=".3g"),
        alt.Tooltip("eigenvalue:Q", title="λ", format=".4g"),
        alt.Tooltip("share:Q", title="variance", format=".2%"),
        alt.Tooltip("cumulative:Q", title="cumulative", format=".2%"),
    ]
    base = alt.Chart(data)
    log = alt.Scale(type="log")
    title = f"ρ = text variance / modal variance ({modes.text_point} / {modes.point})"
    bars = base.mark_rule(opacity=0.5).encode(
        x=x, y=alt.Y("low:Q", title="ρ", scale=log), y2="high:Q", color=kind
    )
    points = base.mark_point(filled=True, size=45).encode(
        x=x, y=alt.Y("rho:Q", title="ρ", scale=log), color=kind, shape=shape, tooltip=tooltip
    )
    line = (
        alt.Chart(inline([{"threshold": threshold}]))
        .mark_rule(strokeDash=[6, 4])
        .encode(y=alt.Y("threshold:Q", title="ρ", scale=log))
    )
    upper = (line + bars + points).properties(width=620, height=280, title=title)
    lower = (
        base.mark_area(line=True, opacity=0.3)
        .encode(
            x=x,
            y=alt.Y("cumulative:Q", title="cumulative variance", axis=alt.Axis(format="%")),
            tooltip=tooltip,
        )
        .properties(width=620, height=90)
    )
    return alt.vconcat(upper, lower)
