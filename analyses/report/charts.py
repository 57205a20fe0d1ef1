"""Draws an Altair chart without a browser: its Vega-Lite spec, SVG, PNG and the rows behind it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import theme

PNG_SCALE = 2.0  # pixels a unit: sharp on a high-density screen and at 150 dots an inch in print


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn figure: `spec` (None for one that is no chart), SVG text, PNG bytes and its tables of rows."""

    svg: str
    png: bytes
    tables: Sequence[Sequence[Mapping[str, Any]]]
    spec: Mapping[str, Any] | None = None


def draw(spec: Mapping[str, Any], name: str, description: str) -> Drawing:
    """Draws a `specification` with no access to the network; `name` makes the SVG's ids unique on a page."""
    import vl_convert

    spec = {**spec, "description": description}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=vega_lite_version(), allowed_base_urls=[])
    # The SVG is transparent, for a dark page; the PNG, made from it in a quarter of the time, is on white.
    on_white = svg.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)
    png = vl_convert.svg_to_png(on_white, scale=PNG_SCALE)
    return Drawing(_unique_ids(svg, name), png, _tables(spec), spec)


def specification(chart: Any) -> dict[str, Any]:
    """A chart's Vega-Lite spec with the report's theme under its own config, as plain JSON values.

    Raises:
        ValueError: the chart loads its data from a URL; a report holds everything itself.
    """
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = plain(chart.to_dict())
    _refuse_remote(spec)
    spec["config"] = _merge(theme.config(), spec.get("config", {}))
    return spec


def vega_lite_version() -> str:
    """The Vega-Lite version that Altair writes, such as "6.4"."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@lru_cache(maxsize=1)
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script (about 0.9 MB) that defines `window.vegaEmbed`."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its published signature demands a snippet; it needs none
    return str(bundle(vl_version=vega_lite_version()))


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV: the columns in order of first appearance, an empty field where a row lacks one."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_for_script(value: Any) -> str:
    """JSON that may stand inside a <script> element: "<", ">", "&" and all but ASCII are escaped."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: Any) -> Any:
    """JSON values only: numpy scalars and arrays unwrapped, NaN and infinities (which JSON lacks) as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _refuse_remote(spec: Any) -> None:
    if isinstance(spec, Mapping):
        data = spec.get("data")
        if isinstance(data, Mapping) and "url" in data:
            raise ValueError(
                f"got a chart that loads {str(data['url'])[:80]!r}; give it inline data (a list or a frame)"
            )
        for part in spec.values():
            _refuse_remote(part)
    elif isinstance(spec, list):
        for part in spec:
            _refuse_remote(part)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _tables(spec: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Every inline data set of a spec, the longest first."""
    found: list[list[Mapping[str, Any]]] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            data = node.get("data")
            if isinstance(data, Mapping) and isinstance(values := data.get("values"), list):
                found.append([row if isinstance(row, Mapping) else {"value": row} for row in values])
            for key, part in node.items():
                if key not in ("data", "datasets"):
                    visit(part)
        elif isinstance(node, list):
            for part in node:
                visit(part)

    found += [list(values) for values in spec.get("datasets", {}).values()]
    visit(spec)
    found.sort(key=len, reverse=True)
    # A data set of one row beside a longer one is a reference line, not data.
    return [rows for rows in found if rows and (len(rows) > 1 or rows is found[0])]


def _unique_ids(svg: str, name: str) -> str:
    """Several SVGs in one page share its ids (clip paths, gradients): prefix them."""
    svg = re.sub(r'(\sid=")([^"]+)"', rf'\g<1>{name}-\2"', svg)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
