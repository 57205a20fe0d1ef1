"""Writes a report: one HTML file that needs nothing else, with its figures and tables as files beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from markupsafe import Markup

from . import charts, page
from .badges import flatten
from .blocks import Builder, FigureBlock
from .model import Headline, Report, Section
from .text import cell, inline, number, paragraphs, slug, span

PAGE = "report.html"
_RESERVED = ("top", "content", "certificates", "provenance")  # anchors of the page itself
_OWNED = re.compile(r"(figures|tables)/[a-z0-9][a-z0-9.-]*")
_FILE_LIST = re.compile(r'<script type="application/json" id="report-files">(.*?)</script>', re.DOTALL)


def write_report(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Writes `report.html` and, beside it, figures/<name>.svg|png|csv|json and tables/<name>.csv|tex.

    Everything is made in a hidden folder first and moved into place when complete, the page last, so that a
    failure leaves an earlier report as it was. Files of the earlier report that the new one lacks are
    removed; nothing else in the folder is touched. The page holds its scripts, styles, data and pictures.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: no section, two sections with one anchor, or an item that a report cannot show.
        OSError: the folder cannot be written.
    """
    _check(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".report-", dir=folder))
    try:
        builder = Builder(staging)
        sections = [_shown(section, builder) for section in report.sections]
        html = _html(report, sections, builder)
        (staging / PAGE).write_text(html, encoding="utf-8", newline="\n")
        stale = _listed_files(folder / PAGE) - set(builder.files)
        for relative in [*builder.files, PAGE]:
            (folder / relative).parent.mkdir(exist_ok=True)
            (staging / relative).replace(folder / relative)
        for relative in sorted(stale):
            (folder / relative).unlink(missing_ok=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder / PAGE


def _check(report: Report) -> None:
    if not report.sections:
        raise ValueError("got a report without sections; expected at least one")
    anchors = [_anchor(part) for section in report.sections for part in (section, *section.parts)]
    taken = [anchor for anchor in anchors if anchors.count(anchor) > 1 or anchor in _RESERVED]
    if taken:
        raise ValueError(f"got the section anchor {taken[0]!r} twice, or one that the report uses itself")


def _shown(section: Section, builder: Builder) -> dict[str, Any]:
    """What the template shows of a section and its parts; their files are written on the way."""
    return {
        "title": section.title,
        "anchor": _anchor(section),
        "prose": paragraphs(section.prose),
        "groups": builder.groups(section),
        "parts": [_shown(part, builder) for part in section.parts],
    }


def _anchor(section: Section) -> str:
    return slug(section.anchor or section.title, "section")


def _listed_files(path: Path) -> set[str]:
    """The figures and tables that the report at `path` says it wrote; empty where there is none."""
    try:
        found = _FILE_LIST.search(path.read_text(encoding="utf-8", errors="replace"))
        names = json.loads(found.group(1)) if found else []
    except (FileNotFoundError, json.JSONDecodeError):
        return set()
    return {name for name in names if isinstance(name, str) and _OWNED.fullmatch(name)}


def _html(report: Report, sections: list[dict[str, Any]], builder: Builder) -> str:
    from modegap._version import __version__

    shown = [part for section in sections for part in (section, *section["parts"])]
    blocks = [block for part in shown for group in part["groups"] for block in group.blocks]
    scripts = [page.script(page.source("report.js"))]
    if any(isinstance(block, FigureBlock) and block.spec for block in blocks):
        scripts.insert(0, page.script(charts.javascript()))
    return page.render(
        "report.html",
        report=report,
        summary=[inline(text) for text in report.summary],
        headlines=[_card(headline) for headline in report.headlines],
        sections=sections,
        certified=builder.certified,
        provenance=[
            (group, [(key.replace("_", " "), cell(value)) for key, value in flatten(facts)])
            for group, facts in report.provenance.items()
        ],
        style=Markup(page.source("style.css")),
        scripts=[Markup(code) for code in scripts],
        policy=page.security_policy(scripts),
        files=Markup(charts.json_for_script(builder.files)),
        raw=Markup,
        inline=inline,
        version=__version__,
    )


def _card(headline: Headline) -> dict[str, Any]:
    value = headline.value if isinstance(headline.value, str) else number(headline.value, 3)
    ends = ""
    if headline.low is not None and headline.high is not None:
        middle = headline.high if isinstance(headline.value, str) else headline.value
        ends = f"{span(middle, headline.low, headline.high)} {headline.unit}".rstrip()
    return {
        "label": headline.label,
        "value": value,
        "unit": headline.unit,
        "span": ends,
        "interval": headline.interval,
        "reading": inline(headline.reading),
    }
