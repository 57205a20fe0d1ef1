"""Numbers and prose as a reader wants them, and file names that are safe everywhere."""

from __future__ import annotations

import math
import re
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

MISSING = "\u2013"  # en dash
SHOWN_PARTS = 20  # of a list in one cell
MINUS = "\u2212"
_SUPERSCRIPTS = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits: 2,620; 0.4189; 3.1 × 10⁻⁹; a dash for NaN."""
    if isinstance(value, Integral):
        return f"{int(value):,}".replace("-", MINUS)
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "\u221e" if value > 0 else f"{MINUS}\u221e"
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa} \u00d7 10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", MINUS)
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1 - _leading_zeros(value)
    text = f"{value:,.{max(digits - whole, 0)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", MINUS)


def span(value: float, low: float, high: float) -> str:
    """`low to high` to as many decimals as `value` has in three significant digits."""
    if any(end != 0 and not 1e-4 <= abs(end) < 1e7 for end in (value, low, high)):
        return f"{number(low, 3)} to {number(high, 3)}"
    whole = math.floor(math.log10(abs(value))) if value else 0
    decimals = max(2 - whole, 0)
    ends = (f"{round(end, decimals) + 0.0:,.{decimals}f}" for end in (low, high))  # + 0.0: no minus zero
    return " to ".join(ends).replace("-", MINUS)


def _leading_zeros(value: float) -> int:
    return 0 if value == 0 else -math.floor(math.log10(abs(value)))


def is_number(value: Any) -> bool:
    """Whether a cell holds a number (bool counts as a word)."""
    return isinstance(value, Real) and not isinstance(value, bool)


def cell(value: Any) -> str:
    """Any value as the text of a table cell."""
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if value is None or value == "" or value != value:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return number(value)
    if isinstance(value, (list, tuple)):
        more = f", \u2026 ({len(value):,} in all)" if len(value) > SHOWN_PARTS else ""
        return ", ".join(cell(part) for part in value[:SHOWN_PARTS]) + more
    return str(value)


def slug(text: str, default: str = "item") -> str:
    """Lower-case letters, digits and single hyphens, at most 60: a file name or a fragment on any system."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-") or default


def paragraphs(text: str) -> list[Markup]:
    """The paragraphs of prose (blank lines between them), each escaped and with inline markup."""
    return [inline(part.strip()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def inline(text: str) -> Markup:
    """Escaped text in which `code` and **strong** are marked up."""
    from markupsafe import Markup, escape

    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked))
