"""What a report is made of. Text is plain, with `code` and **strong** as the only markup, and is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Headline:
    """One number at the top of the report.

    Attributes:
        label: what was measured, a few words.
        value: the number, or a text such as "11 of 100".
        reading: what it means in plain language, one sentence.
        unit: printed after the value, for example "%".
        low: lower end of the interval, in the same unit; None where there is none.
        high: its upper end.
        interval: what the interval is, for example "95 %, jackknife over samples".
    """

    label: str
    value: float | str
    reading: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One example of a gallery: a picture (PIL image, PNG bytes or uint8 [h, w, 3]) and what was said of it.

    `correct` marks the generated text as right or wrong; None makes no claim.
    """

    image: Any
    target: str
    generated: str
    correct: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Examples side by side."""

    title: str
    tiles: Sequence[Tile]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """Names and explains a piece of a section: a Result, an Altair chart, a Table or a Gallery.

    Attributes:
        content: the piece.
        name: stem of its files; default: the section's anchor and the kind of the piece.
        title: heading of the figure; default: the chart's own title, which then moves out of the drawing.
        caption: how to read the figure, printed under it.
        alt: what the figure shows, for readers who cannot see it; default: the chart's description, else the
            title and the caption.
    """

    content: Any
    name: str = ""
    title: str = ""
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A section: paragraphs (separated by blank lines), then the items in order.

    An item is a Result (its `figure()`, then its `table()`, with its certificate as badges), an Altair chart,
    a Table, a `Gallery`, or an `Item` around any of these. `anchor` is the fragment its link uses. `parts` follow
    the items, each with its own heading; parts of parts are not shown.
    """

    title: str
    anchor: str
    prose: str = ""
    items: Sequence[Any] = ()
    parts: Sequence[Section] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report.

    Attributes:
        title: its heading.
        summary: the findings, one plain sentence or two each.
        sections: in order.
        headlines: number cards under the summary.
        provenance: group name to its facts (model, revision, dtype, prompt, data set, config hash, versions,
            machine), each a JSON value.
    """

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    headlines: Sequence[Headline] = ()
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
