"""What every analysis returns: a frozen result that knows its table, its figure and its certificate."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from modegap._names import did_you_mean

from .table import Cell, Column, Table

if TYPE_CHECKING:
    from modegap.engine.certificate import Certificate

__all__ = ["Cell", "Column", "Json", "NotebookRepr", "Result", "Table", "inline", "jsonable", "with_options"]

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


@runtime_checkable
class Result(Protocol):
    """The protocol of a result; `certificate` says how far its numbers can be trusted."""

    @property
    def certificate(self) -> Certificate:
        """Precision, rows, rank, overflow, audit error, stores and versions behind the numbers."""
        ...

    def to_json(self) -> dict[str, Json]:
        """Strict JSON: finite numbers only, NaN and infinities as null."""
        ...

    def table(self) -> Table:
        """The numbers people quote."""
        ...

    def figure(self) -> Any:
        """An Altair chart without a theme, sized for a report."""
        ...


class NotebookRepr:
    """Mixin of the result dataclasses: a notebook shows the table and, where there is one, the figure.

    The figure is drawn as SVG, so that it needs no network and survives a saved notebook; `result.figure()`
    is the interactive chart.
    """

    __slots__ = ()

    def _repr_html_(self: Any) -> str:
        drawn = f"<div>{chart_svg(self.figure())}</div>" if hasattr(self, "figure") else ""
        return f"<div>{self.table().to_html()}{drawn}</div>"


def chart_svg(chart: Any) -> str:
    """The Altair chart as SVG text, rendered by vl-convert (no browser, no network)."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_json()))


def inline(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as Altair inline data (a list of objects needs no dataframe library)."""
    import altair as alt

    data: Any = alt.InlineData
    return data(values=list(rows))


def jsonable(value: Any) -> Json:
    """`value` as strict JSON types.

    Dataclasses become objects, arrays, sequences and sets lists, NaN and infinities null, paths text.

    Raises:
        TypeError: a value with no JSON form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return jsonable(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value) if isinstance(os.fspath(value), str) else repr(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return jsonable(value.tolist())
    if isinstance(value, Sequence | Set):
        return [jsonable(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


ConfigT = TypeVar("ConfigT")


def with_options(config: ConfigT, options: Mapping[str, Any]) -> ConfigT:
    """`config` with the named fields replaced.

    Raises:
        ValueError: a name that is not a field, with the nearest one and the list of all.
    """
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise ValueError(
                f"{type(config).__name__} has no option {name!r}{did_you_mean(name, known)}; "
                f"it has {', '.join(known)}"
            )
    return dataclasses.replace(config, **options)  # type: ignore[type-var]
