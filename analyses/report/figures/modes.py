"""The spectrum of modes and their alignment: the paper's figure 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import MODALITY_SPECIFIC, NEUTRAL, TEXT_ALIGNED

from .axes import Row, finite, grid, log_axis

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.align import Modes

KINDS = ["modality-specific", "text-aligned"]
SHOWN_DECADES = 8  # a rho this many decades below the largest is drawn at the edge; its tooltip has the value


def mode_rows(modes: Modes, model: str) -> list[dict[str, Any]]:
    """One row for each mode that `modes` considers, as `mode_spectrum` takes them."""
    cumulative = modes.cumulative_variance
    return [
        {
            "model": model,
            "mode": k,
            "eigenvalue": float(modes.eigenvalues[k]),
            "rho": float(modes.rho[k]),
            "rho_low": finite(modes.rho_low[k]),
            "rho_high": finite(modes.rho_high[k]),
            "is_ms": bool(modes.is_ms[k]),
            "cumulative": float(cumulative[k]),
        }
        for k in modes.considered.tolist()
    ]


def mode_spectrum(rows: Sequence[Row], *, threshold: float = 0.5) -> alt.ConcatChart:
    """Variance (above) and alignment rho (below) of each mode, both on log axes.

    Modality-specific modes are orange diamonds, text-aligned ones blue circles; bars are the intervals of
    rho, the dashed line the threshold. Several models stand side by side with one scale of rho.

    Args:
        rows: one a mode: `model`, `mode`, `eigenvalue`, `rho`, `rho_low` and `rho_high` (or None), `is_ms`
            and `cumulative` (share of the variance up to and with this mode, 0..1).
        threshold: the rho that separates the two kinds.

    Raises:
        ValueError: no row has a positive eigenvalue.
    """
    import altair as alt

    kept = [row for row in rows if row["eigenvalue"] > 0]
    if not kept:
        raise ValueError(f"got {len(rows)} modes, none with a positive eigenvalue; a log axis needs one")
    largest = max((rho for row in kept if (rho := finite(row["rho"])) is not None), default=0.0)
    floor = max(largest, threshold) * 10.0**-SHOWN_DECADES
    shown = [
        {
            **row,
            "kind": KINDS[0] if row["is_ms"] else KINDS[1],
            "threshold": threshold,
            "rho_drawn": _clip(row["rho"], floor),
            "low_drawn": _clip(row.get("rho_low"), floor),
            "high_drawn": _clip(row.get("rho_high"), floor),
        }
        for row in kept
    ]
    models = list(dict.fromkeys(row["model"] for row in shown))
    columns, width = grid(len(models))
    colors = alt.Scale(domain=KINDS, range=[MODALITY_SPECIFIC, TEXT_ALIGNED])
    color = alt.Color("kind:N", scale=colors, title=None)
    shape = alt.Shape("kind:N", scale=alt.Scale(domain=KINDS, range=["diamond", "circle"]), title=None)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("mode:Q"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("eigenvalue:Q", title="variance λ", format=".3e"),
        alt.Tooltip("rho:Q", title="alignment ρ", format=".3g"),
        alt.Tooltip("rho_low:Q", title="ρ from", format=".3g"),
        alt.Tooltip("rho_high:Q", title="ρ to", format=".3g"),
        alt.Tooltip("cumulative:Q", title="cumulative variance", format=".1%"),
    ]
    marks = {"color": color, "shape": shape, "tooltip": tooltip}
    edges = [row[key] for row in shown for key in ("rho_drawn", "low_drawn", "high_drawn", "threshold")]
    rho_axis = log_axis("alignment ρ", edges)
    index = alt.Scale(nice=False, padding=6)
    bare = alt.X("mode:Q", title=None, scale=index, axis=alt.Axis(labels=False, ticks=False))
    ticks = alt.Axis(tickCount=max(min(max(row["mode"] for row in shown), 10), 1))  # no half modes
    x = alt.X("mode:Q", title="mode (by variance)", scale=index, axis=ticks)

    def panel(model: str) -> alt.VConcatChart:
        variance = log_axis("variance λ", [row["eigenvalue"] for row in shown if row["model"] == model])
        base = alt.Chart().transform_filter(alt.FieldEqualPredicate(field="model", equal=model))
        dots = base.mark_point(filled=True, size=34, opacity=0.95)
        upper = dots.encode(x=bare, y=alt.Y("eigenvalue:Q", **variance), **marks)
        bars = base.mark_rule(strokeWidth=2, opacity=0.4).encode(
            x=x, y=alt.Y("low_drawn:Q", **rho_axis), y2="high_drawn:Q", color=color
        )
        line = (
            base.transform_aggregate(threshold="max(threshold)")
            .mark_rule(strokeDash=[5, 4], color=NEUTRAL)
            .encode(y=alt.Y("threshold:Q", **rho_axis))
        )
        lower = alt.layer(line, bars, dots.encode(x=x, y=alt.Y("rho_drawn:Q", **rho_axis), **marks))
        stack = [upper.properties(width=width, height=130), lower.properties(width=width, height=170)]
        return alt.vconcat(*stack, spacing=8, title=alt.Title(model))

    chart: alt.ConcatChart = alt.concat(
        *map(panel, models), data=alt.InlineData(values=shown), columns=columns
    )
    resolved: alt.ConcatChart = chart.resolve_scale(color="shared", shape="shared", y="independent")
    return resolved


def _clip(value: Any, floor: float) -> float | None:
    """`value` no lower than `floor`, for a log axis; None where it is missing."""
    known = finite(value)
    return None if known is None else max(known, floor)
