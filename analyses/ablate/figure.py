"""The ablation's figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.analyses.result import inline

if TYPE_CHECKING:
    from .outcome import AblationResult


def ablation_chart(result: AblationResult) -> Any:
    """Altair layers: change by condition with its interval, single draws as ticks, and zero."""
    import altair as alt

    names = [c.name for c in result.conditions]
    means = [
        {
            "condition": c.name,
            "percent": c.change.percent,
            "low": c.change.percent_low,
            "high": c.change.percent_high,
            "p": c.change.p,
            "modes": c.n_modes,
            "variance": c.variance,
            "n": c.change.n,
        }
        for c in result.conditions
    ]
    draws = [
        {
            "condition": c.name,
            "percent": draw.change.percent,
            "seed": draw.subset.seed,
            "variance": draw.variance,
            "modes": ", ".join(map(str, draw.subset.indices)),
        }
        for c in result.conditions
        if len(c.draws) > 1
        for draw in c.draws
    ]
    y = alt.Y("condition:N", sort=names, title=None)
    title = "change of the loss [%]"
    base = alt.Chart(inline(means)).encode(y=y)
    intervals = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_point(filled=True, size=90).encode(
        x=alt.X("percent:Q", title=title),
        tooltip=[
            alt.Tooltip("condition:N", title="removed"),
            alt.Tooltip("modes:Q"),
            alt.Tooltip("variance:Q", title="variance of considered", format=".1%"),
            alt.Tooltip("percent:Q", title="change [%]", format="+.2f"),
            alt.Tooltip("low:Q", title="low [%]", format="+.2f"),
            alt.Tooltip("high:Q", title="high [%]", format="+.2f"),
            alt.Tooltip("p:Q", format=".2g"),
            alt.Tooltip("n:Q", title="samples"),
        ],
    )
    zero = alt.Chart(inline([{"zero": 0}])).mark_rule(strokeDash=[4, 4]).encode(x="zero:Q")
    ticks = (
        alt.Chart(inline(draws))
        .mark_tick(opacity=0.5)
        .encode(
            y=y,
            x=alt.X("percent:Q", title=title),
            tooltip=[
                alt.Tooltip("seed:Q"),
                alt.Tooltip("modes:N"),
                alt.Tooltip("variance:Q", title="variance of considered", format=".1%"),
                alt.Tooltip("percent:Q", title="change [%]", format="+.2f"),
            ],
        )
    )
    return (zero + ticks + intervals + points).properties(
        width=560,
        height=max(80, 44 * len(names)),
        title=f"Loss of {result.model} with modes projected out at {result.point}",
    )
