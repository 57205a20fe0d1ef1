from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest

from modegap.analyses.result import Column, NotebookRepr, Result, Table, jsonable, with_options

TABLE = Table(
    "Loss & <gain>",
    ["name", Column("loss", "nats", ".2f"), Column("p", format=".1g"), "kept"],
    [("a_b", 1 / 3, None, True), ("c", math.nan, 0.04, False)],
    ["50 % of n < 5 d"],
)


def test_csv_keeps_full_precision_units_and_leaves_missing_cells_empty(tmp_path: Path) -> None:
    text = TABLE.to_csv(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == text
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["name", "loss [nats]", "p", "kept"]
    assert float(rows[1][1]) == 1 / 3
    assert rows[1][2] == ""
    assert rows[2][1] == ""


def test_html_escapes_and_shows_formatted_cells() -> None:
    html = TABLE.to_html()
    assert "Loss &amp; &lt;gain&gt;" in html
    assert "<gain>" not in html
    assert ">0.33<" in html
    assert ">–<" in html
    assert "50 % of n &lt; 5 d" in html
    assert html.count("<tr>") == 4  # header, two rows, one note


def test_latex_escapes_special_characters() -> None:
    latex = TABLE.to_latex()
    assert r"a\_b & 0.33 & -- & yes \\" in latex
    assert r"50 \% of n \textless{} 5 d" in latex
    assert r"\begin{tabular}{lrrr}" in latex
    assert Table("ρ", ["λ"], []).to_latex().count(r"$\rho$") == 1


def test_latex_cells_that_a_row_end_or_a_font_would_change() -> None:
    cells = [["a", "[x, y]"], ["b", "*"], ["c", "a\n\nb | c"], ["d", "-0.5 [-1.2, 0.3] 1e-9 a-1"]]
    latex = Table("t", ["k", "v"], [row[::-1] for row in cells]).to_latex()
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    assert body == [
        r"{}[x, y] & a \\",
        r"{}* & b \\",
        r"a b \textbar{} c & c \\",
        r"$-$0.5 [$-$1.2, 0.3] 1e-9 a-1 & d \\",
    ]


def test_rich_table_has_all_cells() -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(TABLE.to_rich())
    shown = console.export_text()
    for text in ("Loss & <gain>", "loss [nats]", "a_b", "0.33", "50 % of n < 5 d"):
        assert text in shown


def test_a_narrow_terminal_cuts_no_number() -> None:
    from rich.console import Console

    table = Table("t", [f"a long header {k}" for k in range(6)], [[1234.5678 + k for k in range(6)]])
    console = Console(width=76, file=io.StringIO(), record=True)
    console.print(table.to_rich())
    shown = console.export_text()
    assert all(str(1234.5678 + k) in shown for k in range(6))


def test_a_row_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 has 1 cells, expected 2"):
        Table("t", ["a", "b"], [(1, 2), (3,)])


@dataclasses.dataclass(frozen=True, slots=True)
class _Options:
    threshold: float = 0.5
    top: int = 100


@dataclasses.dataclass(frozen=True, slots=True)
class _Point(NotebookRepr):
    value: float
    certificate: Any = None

    def to_json(self) -> Any:
        return jsonable(self)

    def table(self) -> Table:
        return Table("points", ["value"], [(self.value,)])

    def figure(self) -> Any:
        data = alt.Data(values=[{"x": self.value}])
        return alt.Chart(data).mark_point().encode(x="x:Q").properties(title="where it is")


def test_json_is_strict() -> None:
    value = {
        "nan": np.float32("nan"),
        "array": np.array([[1.0, math.inf]]),
        "options": _Options(),
        "path": Path("a/b"),
        "set": {1},
        "flag": np.bool_(True),
        3: (1, 2),
    }
    found = jsonable(value)
    assert found == {
        "nan": None,
        "array": [[1.0, None]],
        "options": {"threshold": 0.5, "top": 100},
        "path": "a/b",
        "set": [1],
        "flag": True,
        "3": [1, 2],
    }
    json.dumps(found, allow_nan=False)
    with pytest.raises(TypeError, match="object has no JSON form"):
        jsonable(object())


def test_notebooks_show_table_and_figure() -> None:
    result = _Point(1.5)
    assert isinstance(result, Result)
    html = result._repr_html_()
    assert "<table" in html
    assert "<svg" in html
    assert "where it is" in html


def test_unknown_options_name_the_nearest() -> None:
    assert with_options(_Options(), {"top": 7}) == _Options(top=7)
    with pytest.raises(ValueError, match=r"no option 'treshold'.*did you mean 'threshold'.*threshold, top"):
        with_options(_Options(), {"treshold": 1})


@pytest.mark.parametrize("name", ["align", "ablate", "probe"])
def test_options_import_no_torch(name: str) -> None:
    code = (
        f"import sys; import modegap.analyses.{name}.config; import modegap.analyses.result; "
        "heavy = {'torch', 'transformers', 'scipy', 'sklearn', 'altair', 'zarr'} & set(sys.modules); "
        "sys.exit(' '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
