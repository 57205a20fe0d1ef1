"""What the decoder notices of a swap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import CATEGORIES, MODALITY_SPECIFIC, TEXT_ALIGNED

from .axes import Row, log_axis

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.swap import SwapResult


def swap_rows(result: SwapResult) -> list[dict[str, Any]]:
    """One row a sample and subspace: `subspace`, `norm`, `kl`, `sample`, `class`."""
    return [
        {
            "subspace": one.name,
            "norm": float(one.squared[i] ** 0.5),
            "kl": float(one.kl[i]),
            "sample": name,
            "class": result.classes[int(result.codes[i])],
        }
        for one in result.swapped
        for i, name in enumerate(result.ids)
    ]


def swap_scatter(rows: Sequence[Row]) -> alt.Chart:
    """Divergence of the predictions against the norm of the perturbation, one dot a sample, log axes.

    Subspaces whose name starts with `ms` are orange, `ta` blue. A swap that changes nothing at all cannot stand on
    a log axis and is not drawn.

    Args:
        rows: `subspace`, `norm`, `kl`, `sample`, `class`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no swaps; expected at least one sample")
    kept = [row for row in rows if row["kl"] > 0 and row["norm"] > 0]
    names = list(dict.fromkeys(row["subspace"] for row in rows))
    spare = iter(CATEGORIES[2:] * len(names))
    palette = [
        MODALITY_SPECIFIC if name == "ms" else TEXT_ALIGNED if name == "ta" else next(spare) for name in names
    ]
    color = alt.Color(
        "subspace:N", scale=alt.Scale(domain=names, range=palette), legend=alt.Legend(title="swapped")
    )
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=kept))
        .mark_circle(size=36, opacity=0.7)
        .encode(
            x=alt.X("norm:Q", **log_axis("norm of the perturbation", [r["norm"] for r in kept] or [1.0])),
            y=alt.Y("kl:Q", **log_axis("KL, nats a token", [r["kl"] for r in kept] or [1.0])),
            color=color,
            tooltip=[
                alt.Tooltip("sample:N"),
                alt.Tooltip("class:N"),
                alt.Tooltip("subspace:N", title="swapped"),
                alt.Tooltip("norm:Q", format=".4g"),
                alt.Tooltip("kl:Q", title="KL, nats a token", format=".4g"),
            ],
        )
    )
    return chart.properties(width=560, height=280)
