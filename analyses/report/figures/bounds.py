"""How far bounds are from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modegap.analyses.report.theme import CATEGORIES, MODALITY_SPECIFIC, TEXT_ALIGNED

from .axes import Row

if TYPE_CHECKING:
    import altair as alt

    from modegap.analyses.bound import BoundResult

MEASURED, FIRST, BY_D, BY_EFF = "measured |gap|", "L W1", "bound with D", "bound with D_eff"
KINDS = [MEASURED, FIRST, BY_EFF, BY_D]


def bound_rows(result: BoundResult) -> list[dict[str, Any]]:
    """One row a pair and kind: `pair`, `kind`, `power` (log10 of the value)."""
    rows = []
    for pair in result.ranking():
        found: dict[str, float] = {}
        if pair.first_order > 0:
            found[FIRST] = math.log10(pair.first_order)
        if pair.gap is not None and pair.gap.value != 0:
            found[MEASURED] = math.log10(abs(pair.gap.value))
        for p in pair.prefactors:
            if p.constant == "positions" and math.isfinite(p.log10_bound):
                found[BY_D if p.diameter == "D" else BY_EFF] = p.log10_bound
        rows += [{"pair": pair.name, "kind": kind, "power": found[kind]} for kind in KINDS if kind in found]
    return rows


def bound_ladder(rows: Sequence[Row]) -> alt.Chart:
    """Measured gap, L W1 and the bounds of every pair on one axis of powers of ten.

    Args:
        rows: `pair`, `kind`, `power`.

    Raises:
        ValueError: no rows.
    """
    import altair as alt

    if not rows:
        raise ValueError("got no bounds; expected at least one")
    palette = [MODALITY_SPECIFIC, TEXT_ALIGNED, CATEGORIES[2], CATEGORIES[3]]
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(rows)))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            x=alt.X("power:Q", title="log10 of nats a token", scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("pair:N", title=None, sort=pairs, axis=alt.Axis(labelLimit=260, grid=True)),
            color=alt.Color("kind:N", scale=alt.Scale(domain=KINDS, range=palette), title=None),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=KINDS), title=None),
            tooltip=[
                alt.Tooltip("pair:N"),
                alt.Tooltip("kind:N", title="what"),
                alt.Tooltip("power:Q", title="log10", format=".2f"),
            ],
        )
    )
    return chart.properties(width=520, height=44 * len(pairs) + 30)
