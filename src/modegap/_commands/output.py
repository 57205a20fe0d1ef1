"""What a command hands to the console when it is not an analysis' result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegap.analyses.table import Table


@dataclass(frozen=True, slots=True)
class Output:
    """Tables for people, JSON for machines, and the exit code."""

    shown: list[Table]
    data: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def tables(self) -> list[Table]:
        """The tables, in order."""
        return self.shown

    def to_json(self) -> dict[str, Any]:
        """The same as JSON."""
        return self.data


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("the last unit takes every size")


def count(number: int) -> str:
    """A number as people read it: 7.06 G, 13 k."""
    value = float(number)
    for unit in ("", "k", "M", "G"):
        if value < 1000 or unit == "G":
            return f"{number}" if unit == "" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes every number")
