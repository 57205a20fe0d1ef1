"""What the figures share: grids of panels and log axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]


def grid(panels: int) -> tuple[int, int]:
    """Columns of a grid of panels and the width of a panel, so that a row is about 850 wide."""
    columns = panels if panels <= 3 else 2 if panels == 4 else 3
    return columns, {1: 640, 2: 345, 3: 205}[columns]


def log_axis(title: str, values: Iterable[float | None]) -> dict[str, Any]:
    """Title, scale and axis of a log channel over the values: whole decades with at most six labels.

    A label is a plain number from 0.001 to 1000 and 1e-5 or the like beyond, since few fonts have all
    superscripts. Values that are missing or not positive do not count; there must be one that is.
    """
    import altair as alt

    known = [value for value in values if value is not None and value > 0]
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    high = max(high, low + 1)
    exponents = range(low, high + 1, -(-(high - low) // 5))
    names = {k: f"{10.0**k:g}" if -3 <= k <= 3 else f"1e{k}" for k in exponents}
    table = ",".join(f"'{k}':'{name}'" for k, name in names.items())
    return {
        "title": title,
        "scale": alt.Scale(type="log", domain=[10.0**low, 10.0**high], nice=False),
        "axis": alt.Axis(
            values=[10.0**k for k in exponents], labelExpr=f"{{{table}}}[round(log(datum.value) / LN10)]"
        ),
    }


def finite(value: Any) -> float | None:
    """`value` as a float; None where it is missing, not a number or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None
