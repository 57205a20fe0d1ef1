"""Turns the items of a report's sections into numbered blocks for the page, and writes their files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from modegap.analyses.table import Table

from .badges import Certified, certificates
from .charts import Drawing, draw, json_for_script, rows_to_csv, specification
from .gallery import draw_gallery, png_uri
from .model import Gallery, Item, Section
from .text import cell, is_number, slug


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A numbered chart or gallery; `downloads` are (label, file name, data URI), `height` is in pixels."""

    number: int
    name: str
    title: str
    caption: str
    alt: str
    svg: str = ""
    height: int = 0
    spec: str = ""
    tiles: Sequence[tuple[Any, str]] = ()
    downloads: Sequence[tuple[str, str, str]] = ()
    kind: ClassVar[Literal["figure"]] = "figure"


@dataclass(frozen=True, slots=True)
class TableBlock:
    """A numbered table as text cells; `numeric[j]` aligns column j to the right."""

    number: int
    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    notes: Sequence[str]
    downloads: Sequence[tuple[str, str, str]]
    kind: ClassVar[Literal["table"]] = "table"


@dataclass(frozen=True, slots=True)
class Group:
    """What one item shows: its result's warnings, its blocks and the certificates."""

    blocks: Sequence[FigureBlock | TableBlock]
    certificates: Sequence[Certified] = ()
    warnings: Sequence[str] = ()


@dataclass(slots=True)
class Builder:
    """Numbers figures and tables over the whole report, gives each a unique name and writes its files.

    Files go under `folder` (`figures/`, `tables/`); `files` lists them, relative.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    certified: list[Certified] = field(default_factory=list)
    _names: set[tuple[str, str]] = field(default_factory=set)
    _figures: int = 0
    _tables: int = 0

    def groups(self, section: Section) -> list[Group]:
        """The groups of a section's items, in order.

        Raises:
            ValueError: an item is none of Result, chart, Table, Gallery or `Item` around one of these.
        """
        return [self._group(section, item) for item in section.items]

    def _group(self, section: Section, entry: Any) -> Group:
        item = entry if isinstance(entry, Item) else Item(entry)
        content = item.content
        stem = slug(item.name or f"{section.anchor}-{_kind(content)}")
        if isinstance(content, Gallery):
            return Group([self._gallery(content, item, stem)])
        if _is_chart(content):
            return Group([self._chart(content, item, stem)])
        if isinstance(content, Table):
            return Group([self._table(content, stem)])
        if not (hasattr(content, "to_json") and (hasattr(content, "figure") or hasattr(content, "table"))):
            got = type(content).__name__
            raise ValueError(
                f"got an item of type {got} in section {section.title!r}; expected a Result (figure, table, "
                "to_json), an Altair chart, a Table or a Gallery"
            )
        blocks = list(self._result(content, item, stem))
        found = certificates(content, item.title or (blocks[0].title if blocks else section.title))
        self.certified += found
        return Group(blocks, found, tuple(getattr(content, "warnings", ())))

    def _result(self, result: Any, item: Item, stem: str) -> Iterator[FigureBlock | TableBlock]:
        chart = result.figure() if hasattr(result, "figure") else None
        table = result.table() if hasattr(result, "table") else None
        if chart is not None:
            yield self._chart(chart, item, stem, "" if table is None else table.title)
        if table is not None:
            yield self._table(table, stem, set(getattr(result, "warnings", ())))

    def _chart(self, chart: Any, item: Item, stem: str, default: str = "") -> FigureBlock:
        name = self._unique("figure", stem)
        spec = specification(chart)
        own = _take_title(spec)
        heading = item.title or own or default or name.replace("-", " ").capitalize()
        alt = (
            item.alt or str(spec.get("description") or "") or ". ".join(filter(None, (heading, item.caption)))
        )
        drawing = draw(spec, name, alt)
        self._figures += 1
        return FigureBlock(
            number=self._figures,
            name=name,
            title=heading,
            caption=item.caption,
            alt=alt,
            svg=drawing.svg,
            height=_height(drawing.svg),
            spec=json_for_script(drawing.spec),
            downloads=self._save(name, drawing),
        )

    def _gallery(self, gallery: Gallery, item: Item, stem: str) -> FigureBlock:
        name = self._unique("figure", stem)
        pictures = [png_uri(tile.image) for tile in gallery.tiles]
        caption = item.caption or gallery.caption
        self._figures += 1
        return FigureBlock(
            number=self._figures,
            name=name,
            title=item.title or gallery.title,
            caption=caption,
            alt=item.alt or caption or gallery.title,
            tiles=list(zip(gallery.tiles, pictures, strict=True)),
            downloads=self._save(name, draw_gallery(gallery, pictures)),
        )

    def _table(self, table: Table, stem: str, told: Collection[str] = ()) -> TableBlock:
        name = self._unique("table", stem)
        path = self._path(f"tables/{name}.csv")
        text = table.to_csv(path)
        latex = table.to_latex(label=f"tab:{name}")
        self._path(f"tables/{name}.tex").write_text(latex, encoding="utf-8")
        headers = table.headers
        self._tables += 1
        return TableBlock(
            number=self._tables,
            name=name,
            title=table.title,
            columns=[column.title for column in headers],
            rows=[
                [
                    _tied(column.show(value) if column.format else cell(value))
                    for column, value in zip(headers, row, strict=True)
                ]
                for row in table.rows
            ],
            numeric=[_numeric([row[j] for row in table.rows]) for j in range(len(headers))],
            notes=[note for note in table.notes if note not in told],
            downloads=[("CSV", path.name, _uri("csv", text)), ("LaTeX", f"{name}.tex", _uri("x-tex", latex))],
        )

    def _save(self, name: str, drawing: Drawing) -> list[tuple[str, str, str]]:
        self._path(f"figures/{name}.svg").write_text(drawing.svg, encoding="utf-8")
        self._path(f"figures/{name}.png").write_bytes(drawing.png)
        downloads = []
        for index, rows in enumerate(drawing.tables):
            path = self._path(f"figures/{name}{f'.{index + 1}' if index else ''}.csv")
            text = rows_to_csv(rows)
            path.write_text(text, encoding="utf-8")
            downloads.append((f"CSV {index + 1}" if index else "CSV", path.name, _uri("csv", text)))
        content = drawing.spec if drawing.spec is not None else [dict(row) for row in drawing.tables[0]]
        self._path(f"figures/{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        return downloads

    def _path(self, relative: str) -> Path:
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append(relative)
        return path

    def _unique(self, kind: str, stem: str) -> str:
        name, count = stem, 1
        while (kind, name) in self._names:
            count += 1
            name = f"{stem}-{count}"
        self._names.add((kind, name))
        return name


def _is_chart(content: Any) -> bool:
    import altair as alt

    return isinstance(content, alt.TopLevelMixin)


def _kind(content: Any) -> str:
    """The noun in a file name: `AblationResult` is an ablation, any chart a figure."""
    if isinstance(content, Gallery):
        return "gallery"
    if isinstance(content, Table):
        return "table"
    return "figure" if _is_chart(content) else type(content).__name__.removesuffix("Result")


def _take_title(spec: dict[str, Any]) -> str:
    """Takes the title out of a spec: the page prints it above the figure."""
    title = spec.pop("title", "")
    text = title.get("text", "") if isinstance(title, dict) else title
    return " ".join(map(str, text)) if isinstance(text, list) else str(text)


def _tied(text: str) -> str:
    """Keeps `[low, high]` on one line."""
    return re.sub(r"\[([^][]{1,24}), ([^][]{1,24})\]", "[\\1,\N{NO-BREAK SPACE}\\2]", text)


def _height(svg: str) -> int:
    """Room that a drawing will take, so that the page does not move when it is drawn."""
    found = re.search(r'<svg[^>]*? height="(\d+)', svg)
    return int(found[1]) if found else 0


def _numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None and value != ""]
    return bool(known) and all(is_number(value) for value in known)


def _uri(kind: str, text: str) -> str:
    return f"data:text/{kind};charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")
