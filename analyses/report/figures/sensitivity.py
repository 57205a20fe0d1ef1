"""How sensitive the decoder is: distributions of gradient norms, and projections on modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import (
    CATEGORIES,
    MODALITY_SPECIFIC,
    NEUTRAL,
    TEXT_ALIGNED,
)

from .axes import Row, finite, log_axis

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.gradproj import GradprojResult
    from modegap.analyses.lipschitz import LipschitzResult

KINDS = ["modality-specific", "text-aligned"]


def norm_rows(result: LipschitzResult, name: str = "") -> list[dict[str, Any]]:
    """One row a sample: its `norm`, the `share` of samples at or below it, and `id`."""
    order = result.norms.argsort(kind="stable")
    return [
        {
            "norm": float(result.norms[i]),
            "share": (rank + 1) / len(order),
            "id": result.ids[i],
            "series": name or result.model,
        }
        for rank, i in enumerate(order.tolist())
    ]


def norm_curves(rows: Sequence[Row]) -> alt.LayerChart:
    """Cumulative distribution of per-sample gradient norms, one line a series, with the 95 % line.

    Args:
        rows: `norm`, `share` (0..1), `id`, `series`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no gradient norms; expected at least one sample")
    names = list(dict.fromkeys(row["series"] for row in rows))
    palette = [TEXT_ALIGNED, MODALITY_SPECIFIC, *CATEGORIES[2:]]
    legend = alt.Legend(title=None) if len(names) > 1 else None
    color = alt.Color("series:N", scale=alt.Scale(domain=names, range=palette), legend=legend)
    x = alt.X("norm:Q", **log_axis("norm of the gradient of log q", [row["norm"] for row in rows]))
    y = alt.Y(
        "share:Q", title="samples at or below", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
    )
    base = alt.Chart().transform_filter(alt.FieldGTPredicate(field="norm", gt=0))
    tooltip = [
        alt.Tooltip("id:N", title="sample"),
        alt.Tooltip("norm:Q", format=".4g"),
        alt.Tooltip("share:Q", format=".1%"),
    ]
    edge = (
        base.transform_aggregate(n="count()")
        .transform_calculate(at="0.95")
        .mark_rule(color=NEUTRAL, strokeDash=[5, 4])
    )
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=list(rows)),
        layer=[
            edge.encode(y=alt.Y("at:Q", title="samples at or below")),
            base.mark_line(interpolate="step-after", strokeWidth=1.8).encode(x=x, y=y, color=color),
            base.mark_circle(size=14, opacity=0.5).encode(x=x, y=y, color=color, tooltip=tooltip),
        ],
    )
    return chart.properties(width=600, height=240)


def sensitivity_rows(result: GradprojResult) -> list[dict[str, Any]]:
    """One row a considered mode: `mode`, `rho`, `g`, `kind`."""
    return [
        {
            "mode": int(mode),
            "rho": finite(result.rho[i]),
            "g": float(result.g[mode]),
            "kind": KINDS[0] if result.is_ms[i] else KINDS[1],
        }
        for i, mode in enumerate(result.considered.tolist())
    ]


def sensitivity(rows: Sequence[Row], *, isotropic: float, threshold: float = 0.5) -> alt.LayerChart:
    """The decoder's sensitivity g along each mode against the mode's alignment rho, both on log axes.

    Args:
        rows: `mode`, `rho`, `g`, `kind`.
        isotropic: g of random directions (dashed across).
        threshold: the rho that separates the kinds (dashed upright).

    Raises:
        ValueError: no mode has a positive g and rho.
    """
    import altair as alt

    kept = [row for row in rows if row["rho"] and row["rho"] > 0 and row["g"] > 0]
    if not kept:
        raise ValueError(f"got {len(rows)} modes, none with a positive g and rho; log axes need one")
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=KINDS, range=[MODALITY_SPECIFIC, TEXT_ALIGNED]),
        title=None,
    )
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=KINDS, range=["diamond", "circle"]), title=None)
    x = {**log_axis("alignment ρ", [row["rho"] for row in kept])}
    y = {**log_axis("sensitivity g", [*(row["g"] for row in kept), isotropic])}
    base = alt.Chart()
    once = base.transform_aggregate(n="count()").transform_calculate(g=f"{isotropic!r}", rho=f"{threshold!r}")
    dashed: dict[str, Any] = {"color": NEUTRAL, "strokeDash": [5, 4]}
    tooltip = [
        alt.Tooltip("mode:Q"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("rho:Q", title="ρ", format=".3g"),
        alt.Tooltip("g:Q", format=".4g"),
    ]
    chart: alt.LayerChart = alt.LayerChart(
        data=alt.InlineData(values=kept),
        layer=[
            once.mark_rule(**dashed).encode(y=alt.Y("g:Q", **y)),
            once.mark_rule(**dashed).encode(x=alt.X("rho:Q", **x)),
            base.mark_point(filled=True, size=50, opacity=0.85).encode(
                x=alt.X("rho:Q", **x), y=alt.Y("g:Q", **y), color=color, shape=shape, tooltip=tooltip
            ),
        ],
    )
    return chart.properties(width=560, height=280)
