"""Tables: typed rows that render as CSV, HTML, LaTeX and on the terminal."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | int | float | bool | None

_MISSING = "–"
_NAME_WIDTH = 24
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # LaTeX's default font encoding prints others in their place
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "ρ": r"$\rho$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "²": r"$^2$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "τ": r"$\tau$",
    "δ": r"$\delta$",
    "μ": r"$\mu$",
    "‖": r"$\Vert$",
    "√": r"$\surd$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "…": r"\dots{}",
    "’": "'",
}
_LATEX_PATTERN = re.compile("|".join(map(re.escape, _LATEX)))
_NEGATIVE = re.compile(r"(?<![\w.)\]-])-(?=[\d.])")
_PAGE = 36  # rows; below the last ones go the notes
# A table that is too wide is shrunk to the line; others keep their size.
_SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, its unit (empty where it has none) and a format spec for numbers (`.3f`)."""

    name: str
    unit: str = ""
    format: str = ""

    @property
    def title(self) -> str:
        """`name [unit]`."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def show(self, value: Cell) -> str:
        """The cell as people read it: None and non-finite numbers as a dash."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return _MISSING
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int | float) and self.format:
            return format(value, self.format)
        return str(value)


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; `notes` are sentences printed under it (conditions, warnings, definitions).

    Attributes:
        title: one line.
        columns: `Column`s or bare names.
        rows: one sequence of cells a row, as wide as `columns`.
        notes: sentences under the table.

    Raises:
        ValueError: a row whose width is not the number of columns.
    """

    title: str
    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Bring columns, rows and notes into their final form."""
        columns = tuple(Column(c) if isinstance(c, str) else c for c in self.columns)
        rows = tuple(tuple(row) for row in self.rows)
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(
                    f"table {self.title!r}: row {index} has {len(row)} cells, expected {len(columns)}"
                )
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def headers(self) -> tuple[Column, ...]:
        """The columns, all as `Column`."""
        return tuple(Column(c) if isinstance(c, str) else c for c in self.columns)

    def cells(self) -> list[list[str]]:
        """The rows as formatted text."""
        headers = self.headers
        return [[column.show(cell) for column, cell in zip(headers, row, strict=True)] for row in self.rows]

    def to_csv(self, path: str | Path | None = None) -> str:
        """CSV text with full-precision numbers and `name [unit]` headers; missing cells are empty.

        Written to `path` too where one is given (UTF-8). Notes are not part of it.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([column.title for column in self.headers])
        for row in self.rows:
            writer.writerow([_csv_cell(cell) for cell in row])
        text = buffer.getvalue()
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_rich(self) -> RichTable:
        """A `rich` table for the terminal: numbers right-aligned, the notes as its caption."""
        from rich.table import Table as RichTable
        from rich.text import Text

        caption = Text("\n".join(self.notes)) if self.notes else None
        out = RichTable(title=Text(self.title), caption=caption, caption_justify="left")
        cells = self.cells()
        for k, (column, numeric) in enumerate(zip(self.headers, self._numeric(), strict=True)):
            # A narrow terminal may wrap headers and long text, but cuts neither numbers nor names.
            width = max((len(row[k]) for row in cells), default=0)
            out.add_column(
                Text(column.title),
                justify="right" if numeric else "left",
                min_width=width if numeric else min(width, _NAME_WIDTH),
                overflow="fold",
            )
        for row in cells:
            out.add_row(*(Text(cell) for cell in row))
        return out

    def to_html(self) -> str:
        """A `<table class="modegap-table">` with caption, scoped headers and the notes as `<tfoot>`."""
        numeric = self._numeric()
        head = "".join(
            f'<th scope="col"{_num(n)}>{html.escape(c.title)}</th>'
            for c, n in zip(self.headers, numeric, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(f"<td{_num(n)}>{html.escape(cell)}</td>" for cell, n in zip(row, numeric, strict=True))
            + "</tr>"
            for row in self.cells()
        )
        foot = "".join(
            f'<tr><td colspan="{len(numeric)}">{html.escape(note)}</td></tr>' for note in self.notes
        )
        return (
            f'<table class="modegap-table"><caption>{html.escape(self.title)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
            + (f"<tfoot>{foot}</tfoot>" if foot else "")
            + "</table>"
        )

    def to_latex(self, label: str = "") -> str:
        r"""A `table` float for the booktabs and graphicx packages; the notes follow the rows in `\footnotesize`.

        A table wider than the text is shrunk to its width, one of more rows than a page holds goes on in further
        floats of the same number. Characters that LaTeX's text fonts lack are replaced by commands; what has none is
        printed as `?`.

        Args:
            label: for `\ref`, for example `tab:modes`.
        """
        align = "".join("r" if numeric else "l" for numeric in self._numeric())
        head = " & ".join(_latex_cell(column.title) for column in self.headers) + r" \\"
        rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in self.cells()]
        pages = [rows[start : start + _PAGE] for start in range(0, max(len(rows), 1), _PAGE)]
        lines: list[str] = []
        for page, some in enumerate(pages):
            named = rf"\label{{{label}}}" if label and not page else ""
            again = [r"\addtocounter{table}{-1}"] if page else []
            lines += [
                r"\begin{table}[t]",
                r"\centering",
                *again,
                rf"\caption{{{_latex(self.title)}{' (continued)' if page else ''}}}{named}",
                _SHRUNK,
                rf"\begin{{tabular}}{{{align}}}",
                r"\toprule",
                head,
                r"\midrule",
                *some,
                r"\bottomrule",
                r"\end{tabular}}",
                *(rf"\par{{\footnotesize {_latex(note)}}}" for note in self.notes if some is pages[-1]),
                r"\end{table}",
            ]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        return self.to_html()

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers only (missing cells aside)."""
        out = []
        for k in range(len(self.columns)):
            cells = [row[k] for row in self.rows if row[k] is not None]
            out.append(bool(cells) and all(isinstance(c, int | float) for c in cells))
        return out


def _csv_cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return str(cell)


def _num(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def _latex(text: str) -> str:
    signed = _NEGATIVE.sub("\u2212", " ".join(text.split()))
    escaped = _LATEX_PATTERN.sub(lambda match: _LATEX[match.group()], signed)
    # inputenc knows the accented letters of Latin-1 and Latin Extended-A
    return "".join(c if ord(c) < 0x180 else "?" for c in escaped)


def _latex_cell(text: str) -> str:
    """A cell; the row's end before it would take a first [ or * as its own option."""
    shown = _latex(text)
    return "{}" + shown if shown.startswith(("[", "*")) else shown
