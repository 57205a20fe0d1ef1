"""The report: one page that needs nothing else, its files, and what it refuses."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import numpy as np
import pytest
from PIL import Image

from modegap.analyses.report import Gallery, Headline, Item, Report, Section, Tile, write_report
from modegap.analyses.table import Column, Table
from tests.analyses.report_fakes import FakeResult, demo_report, modes, table

HOSTILE = "<script>window.owned=1</script>\"'&</noscript></style><img src=x onerror=window.owned=1>"
SIZE_LIMIT = 3_000_000  # bytes of HTML for a typical demo


class Page(HTMLParser):
    """Elements with their attributes, the text outside scripts and styles, and the scripts that would run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._raw: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._raw = "data" if dict(attrs).get("type") == "application/json" else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.text += data
        elif self._raw == "script":
            self.scripts.append(data)

    def of(self, tag: str, cls: str | None = None) -> list[dict[str, str | None]]:
        found = [attrs for name, attrs in self.elements if name == tag]
        return [a for a in found if cls is None or cls in (a.get("class") or "").split()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(demo_report(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def small(*items: Any, **fields: Any) -> Report:
    return Report("T", ["s"], [Section("One", "one", "", items)], **fields)


def decode(uri: str | None) -> str:
    assert uri is not None
    return base64.b64decode(uri.partition("base64,")[2]).decode()


def test_headings_contents_and_ids(page: Page) -> None:
    assert len(page.of("h1")) == 1
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    assert [i for i, count in Counter(ids).items() if count > 1] == []
    fragments = [str(a["href"])[1:] for a in page.of("a") if str(a["href"]).startswith("#")]
    wanted = {"content", "modes", "ablation", "probes", "examples", "certificates", "provenance"}
    assert set(fragments) == wanted
    assert wanted <= set(ids)


def test_figures_and_tables_speak_to_a_screen_reader(page: Page) -> None:
    charts = page.of("div", "chart")
    assert len([a for a in charts if a.get("data-chart")]) == 4
    assert all(a.get("role") == "img" and a.get("aria-label") for a in charts)
    assert all(a.get("alt") for a in page.of("img"))
    assert len(page.of("table")) == len(page.of("caption")) == len(page.of("div", "table")) == 4
    assert all(a.get("scope") in ("col", "row") for a in page.of("th"))
    assert page.of("html")[0]["lang"] == "en"


def test_a_wide_table_scrolls_inside_itself(page: Page) -> None:
    assert len(page.of("div", "scroll")) == len(page.of("table"))
    assert all(a.get("tabindex") == "0" and a.get("role") == "region" for a in page.of("div", "scroll"))


def test_loads_nothing_from_anywhere(written: Path, page: Page) -> None:
    html = written.read_text(encoding="utf-8")
    for tag, attrs in page.elements:
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert not attrs.get(name) or str(attrs[name]).startswith(("#", "data:")), (tag, attrs[name])
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    policy = next(a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert len(page.scripts) == 2
    for code in page.scripts:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_page_is_small(written: Path) -> None:
    assert 900_000 < written.stat().st_size < SIZE_LIMIT


def test_every_figure_has_its_four_files(written: Path, page: Page) -> None:
    figures = written.parent / "figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert names == {"modes-fake", "five", "ablation-fake", "probes-figure", "examples-gallery"}
    for name in names:
        root = ElementTree.fromstring((figures / f"{name}.svg").read_text(encoding="utf-8"))
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        assert 200 < width < 1000
        assert 60 < height < 1000
        assert len(list(root.iter())) > 50
        with Image.open(figures / f"{name}.png") as image:
            assert image.width == pytest.approx(2 * width, abs=2)
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20
        assert (figures / f"{name}.csv").stat().st_size > 100
        json.loads((figures / f"{name}.json").read_text(encoding="utf-8"))
    tables = ("modes-fake", "five", "ablation-fake", "probes-table")
    assert {path.name for path in (written.parent / "tables").iterdir()} == {
        f"{name}.{kind}" for name in tables for kind in ("csv", "tex")
    }


def test_a_figure_s_csv_holds_the_rows_it_was_drawn_from(written: Path) -> None:
    with (written.parent / "figures" / "five.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    expected = modes(5)
    assert len(found) == len(expected) == 500
    for row, want in zip(found, expected, strict=True):
        assert row["model"] == want["model"]
        assert all(
            float(row[key]) == want[key] for key in ("mode", "eigenvalue", "rho", "rho_low", "cumulative")
        )
        assert row["is_ms"] == str(want["is_ms"])


def test_a_table_s_csv_holds_its_numbers_in_full(written: Path) -> None:
    with (written.parent / "tables" / "modes-fake.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["mode", "variance", "cumulative [%]", "rho", "kind"]
    for row, want in zip(rows, table().rows, strict=True):
        assert [int(row[0]), float(row[1]), float(row[2])] == list(want[:3])
        assert row[3] == ("" if want[3] is None else str(want[3]))


def test_the_page_alone_holds_the_data_of_every_figure_and_table(written: Path, page: Page) -> None:
    links = {str(a["download"]): a["href"] for a in page.of("a") if a.get("download")}
    files = [*written.parent.glob("figures/*.csv"), *written.parent.glob("tables/*")]
    assert len(files) == 5 + 2 * 4
    for path in files:
        in_page = [decode(a["href"]) for a in page.of("a") if a.get("download") == path.name]
        assert path.read_text(encoding="utf-8") in in_page
    assert set(links) == {path.name for path in files}


def test_shows_numbers_formatted_and_units_in_headers(page: Page) -> None:
    assert "4.000e+01" in page.text
    assert "cumulative [%]" in page.text
    assert "\u22121.41" in page.text
    assert "\u22121.90 to \u22120.90 %" in page.text


def test_untrusted_labels_stay_text(tmp_path: Path) -> None:
    path = write_report(demo_report(HOSTILE, count=5), tmp_path)
    found = Page(path.read_text(encoding="utf-8"))
    assert len(found.scripts) == 2
    assert not any("owned" in code for code in found.scripts)
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert all(str(a["src"]).startswith("data:image/png;base64,") for a in found.of("img"))
    assert found.text.count(HOSTILE) >= 5
    for svg in tmp_path.glob("figures/*.svg"):
        root = ElementTree.fromstring(svg.read_text(encoding="utf-8"))
        assert not [element for element in root.iter() if element.tag.endswith("script")]
    with (tmp_path / "figures" / "probes-figure.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["label"] == HOSTILE


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report(demo_report(count=5), tmp_path / name) for name in ("a", "b"))
    assert contents(first.parent) == contents(second.parent)


class Broken(FakeResult):
    """A result whose figure fails, as a full disk or a bad store would make it."""

    def figure(self) -> Any:
        raise OSError("no space left on device")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_failure_leaves_the_earlier_report_as_it_was(tmp_path: Path) -> None:
    write_report(small(table()), tmp_path)
    before = contents(tmp_path)
    assert set(before) == {"report.html", "tables/one-table.csv", "tables/one-table.tex"}
    with pytest.raises(OSError, match="no space"):
        write_report(small(table("Other", 3), Broken(None, table())), tmp_path)
    assert contents(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "tables"}


def test_a_new_report_takes_away_the_old_one_s_files_and_no_others(tmp_path: Path) -> None:
    write_report(
        small(Item(FakeResult(alt.Chart(alt.Data(values=[{"x": 1}])).mark_point(), table()), name="old")),
        tmp_path,
    )
    (tmp_path / "figures" / "mine.png").write_bytes(b"mine")
    write_report(small(Item(table(), name="new")), tmp_path)
    assert set(contents(tmp_path)) == {"report.html", "tables/new.csv", "tables/new.tex", "figures/mine.png"}


def test_a_forged_list_of_files_removes_nothing_outside(tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("keep")
    folder = tmp_path / "out"
    folder.mkdir()
    names = json.dumps(["../keep.txt", "figures/../../keep.txt", str(keep)])
    (folder / "report.html").write_text(f'<script type="application/json" id="report-files">{names}</script>')
    write_report(small(table()), folder)
    assert keep.read_text() == "keep"


def test_equal_names_are_told_apart(tmp_path: Path) -> None:
    write_report(small(table(), table(), table()), tmp_path)
    assert {p.name for p in tmp_path.glob("tables/*.csv")} == {
        "one-table.csv",
        "one-table-2.csv",
        "one-table-3.csv",
    }


def test_warnings_stand_above_the_result_and_not_twice(tmp_path: Path) -> None:
    rows = Table("W", ["a"], [[1]], ["a note", "few rows: n < 5 d"])
    result = FakeResult(None, rows, warnings=("few rows: n < 5 d",))
    found = Page(write_report(small(result), tmp_path).read_text(encoding="utf-8"))
    assert found.text.count("few rows: n < 5 d") == 1
    assert found.text.index("few rows") < found.text.index("Table 1")
    assert len(found.of("ul", "warnings")) == 1


def test_a_chart_s_own_title_becomes_the_heading(tmp_path: Path) -> None:
    chart = alt.Chart(alt.Data(values=[{"x": 1}]), title="My own title").mark_point().encode(x="x:Q")
    html = write_report(small(chart), tmp_path).read_text(encoding="utf-8")
    assert re.search(r"Figure 1</span> My own title", html)
    assert "My own title" not in (tmp_path / "figures" / "one-figure.svg").read_text(encoding="utf-8")


def test_missing_numbers_in_a_chart_become_null(tmp_path: Path) -> None:
    values = [
        {"x": 1.0, "y": float("nan")},
        {"x": np.float64(2), "y": float("inf")},
        {"x": 3, "y": np.int64(4)},
    ]
    write_report(small(alt.Chart(alt.Data(values=values)).mark_point().encode(x="x:Q", y="y:Q")), tmp_path)
    spec = json.loads((tmp_path / "figures" / "one-figure.json").read_text(encoding="utf-8"))
    assert [row["y"] for row in spec["data"]["values"]] == [None, None, 4]


def test_a_chart_of_two_data_sets_gives_two_csv_files(tmp_path: Path) -> None:
    first = alt.Chart(alt.Data(values=[{"x": k} for k in range(5)])).mark_point().encode(x="x:Q")
    second = (
        alt.Chart(alt.Data(values=[{"x": 1, "y": 2}, {"x": 3, "y": 4}])).mark_bar().encode(x="x:Q", y="y:Q")
    )
    line = alt.Chart(alt.Data(values=[{"x": 2}])).mark_rule().encode(x="x:Q")
    write_report(small(first + second + line), tmp_path)
    assert (tmp_path / "figures" / "one-figure.csv").read_text() == "x\n0\n1\n2\n3\n4\n"
    assert (tmp_path / "figures" / "one-figure.2.csv").read_text() == "x,y\n1,2\n3,4\n"
    assert not (tmp_path / "figures" / "one-figure.3.csv").exists()


def test_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    remote = alt.Chart("https://example.org/data.csv").mark_point().encode(x="x:Q")
    for report, message in [
        (small(remote), "inline data"),
        (small(3), "got an item of type int in section 'One'"),
        (Report("T", [], []), "without sections"),
        (Report("T", [], [Section("A", "a"), Section("B", "a")]), "anchor 'a'"),
        (Report("T", [], [Section("Provenance", "provenance")]), "'provenance'"),
        (small(Gallery("g", [Tile(np.zeros((2, 2)), "a", "b")])), "expected a PIL image"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_report(report, tmp_path / "out")
    assert list((tmp_path / "out").rglob("*")) == []


def test_a_page_without_charts_carries_no_chart_library(tmp_path: Path) -> None:
    assert write_report(small(table()), tmp_path).stat().st_size < 60_000


def test_a_gallery_takes_every_kind_of_picture(tmp_path: Path) -> None:
    array = np.full((40, 20, 3), 7, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    large = Image.new("RGB", (900, 600), "red")
    tiles = [Tile(picture, "t", "g") for picture in (array, array[..., 0], buffer.getvalue(), large)]
    found = Page(write_report(small(Gallery("g", tiles)), tmp_path).read_text(encoding="utf-8"))
    sizes = []
    for attrs in found.of("img"):
        raw = base64.b64decode(str(attrs["src"]).partition("base64,")[2])
        with Image.open(io.BytesIO(raw)) as image:
            sizes.append(image.size)
    assert sizes == [(60, 120)] * 3 + [(256, 171)]


def test_headlines_without_numbers(tmp_path: Path) -> None:
    cards = [Headline("a", "many", low=1.0, high=2.5), Headline("b", 0.00001234), Headline("c", 3, unit="%")]
    found = Page(write_report(small(headlines=cards), tmp_path).read_text(encoding="utf-8"))
    assert "1.00 to 2.50" in found.text
    assert "1.23 \u00d7 10\u207b\u2075" in found.text
    assert len(found.of("p", "span")) == 1


def test_table_cells_use_the_column_s_format(tmp_path: Path) -> None:
    rows = Table(
        "t", [Column("p", format=".2g"), "free", "flag"], [[1e-7, 1e-7, True], [0.25, float("nan"), None]]
    )
    found = Page(write_report(small(rows), tmp_path).read_text(encoding="utf-8"))
    for text in ("1e-07", "1 \u00d7 10\u207b\u2077", "yes", "0.25", "\u2013"):
        assert text in found.text


def test_importing_the_package_loads_no_drawing_library() -> None:
    code = (
        "import sys, modegap.analyses.report, modegap.analyses.report.figures;"
        "print([m for m in ('altair', 'vl_convert', 'jinja2', 'torch', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
