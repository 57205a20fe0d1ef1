"""The report in a real browser: every figure drawn, nothing loaded, fit for phone, dark scheme and paper."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from modegap.analyses.report import write_report
from modegap.analyses.study import study_report
from tests.analyses.report_fakes import demo_report
from tests.analyses.test_report import HOSTILE
from tests.browser import Browser, Page, find_chromium

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: set MODEGAP_CHROMIUM or install chromium or google-chrome"
)
READY = "document.documentElement.dataset.charts === 'ready'"
# For each chart: its name, how it was drawn, how many marks it has, its width and the room it has.
CHARTS = """[...document.querySelectorAll('.chart[data-chart]')].map((box) => {
  const svg = box.querySelector('svg');
  return [box.dataset.chart, box.dataset.state, svg.querySelectorAll('[class*="mark-symbol"] path').length,
          svg.getBoundingClientRect().width, box.clientWidth];
})"""
MARKS = {"modes-fake": 200, "five": 1000, "ablation-fake": 3, "probes-figure": 16}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with Browser(CHROMIUM) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(demo_report(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with every kind of result."""
    made = runpy.run_path(str(Path(__file__).with_name("result_examples.py")))
    studies = [study for study in made["studies"]() if study.name.endswith("librispeech")]
    return write_report(study_report(studies), tmp_path_factory.mktemp("models"))


def drawn(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> Page:
    page = browser.open(path, width=width, dark=dark)
    page.wait_for(READY)
    return page


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_and_fits(browser: Browser, report: Path, width: int) -> None:
    page = drawn(browser, report, width=width)
    charts = page.evaluate(CHARTS)
    assert {name for name, *_ in charts} == set(MARKS)
    for name, state, marks, needed, room in charts:
        assert state == "drawn"
        assert marks >= MARKS[name]
        assert 150 < needed <= room + 1
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.problems == []
    assert page.requests == [report.as_uri()]


def test_the_contents_fold_away_on_a_phone(browser: Browser, report: Path) -> None:
    is_open = "document.querySelector('.toc details').open"
    assert drawn(browser, report, width=1280).evaluate(is_open) is True
    assert drawn(browser, report, width=390).evaluate(is_open) is False


def test_dark_scheme_lightens_the_text_of_charts(browser: Browser, report: Path) -> None:
    colors = (
        "[getComputedStyle(document.body).backgroundColor,"
        " getComputedStyle(document.querySelector('.chart svg [class*=role-axis-label] text')).fill]"
    )
    light = drawn(browser, report).evaluate(colors)
    dark = drawn(browser, report, dark=True).evaluate(colors)
    assert light == ["rgb(255, 255, 255)", "rgb(85, 96, 109)"]
    assert dark == ["rgb(18, 22, 27)", "rgb(163, 173, 184)"]


def test_without_scripts_the_drawings_stand_in(browser: Browser, report: Path) -> None:
    page = browser.open(report, scripts=False)
    tree = page.call("DOM.getDocument", depth=-1)
    found = page.call("DOM.querySelectorAll", nodeId=tree["root"]["nodeId"], selector="noscript .chart svg")
    assert len(found["nodeIds"]) == len(MARKS)
    for node in found["nodeIds"]:
        box = page.call("DOM.getBoxModel", nodeId=node)["model"]
        assert box["width"] > 300
        assert box["height"] > 80


@pytest.mark.parametrize("width", [1280, 390])
def test_models_side_by_side_fit(browser: Browser, models: Path, width: int) -> None:
    page = drawn(browser, models, width=width)
    charts = page.evaluate(CHARTS)
    names = {name for name, *_ in charts}
    assert {
        "degradation",
        "published",
        "encoders",
        "probe-overview",
        "pooling-ultravox-on-librispeech",
    } <= names
    assert len(charts) >= 28
    for name, state, _, needed, room in charts:
        assert (name, state) == (name, "drawn")
        assert needed <= room + 1, name
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.problems == []
    broken = page.evaluate(
        "[...document.querySelectorAll('.toc a')].map((a) => a.hash.slice(1))"
        ".filter((id) => !document.getElementById(id))"
    )
    assert broken == []
    # only the parts of the section in view are listed
    page.evaluate("location.hash = '#model-qwen2audio-on-librispeech'; 1")
    page.wait_for(
        "document.querySelector('.toc a[aria-current]')?.hash === '#model-qwen2audio-on-librispeech'"
    )
    shown = page.evaluate(
        "document.querySelector('.toc details').open = true,"
        " [...document.querySelectorAll('.toc ol ol')].filter((list) => list.offsetHeight > 0).length"
    )
    assert shown == 1


def test_a_figure_can_be_saved_under_the_page_s_own_policy(browser: Browser, report: Path) -> None:
    page = drawn(browser, report)
    page.evaluate(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () "
        "{ window.saved.push([this.download, this.href.split(/[;:](?!image|application)/)[0]]); }; 1"
    )
    page.evaluate(
        "for (const button of document.querySelectorAll('[data-chart=five][data-save]'))"
        " button.dispatchEvent(new MouseEvent('click', {bubbles: true})); 1"
    )
    page.wait_for("window.saved.length === 3")
    assert sorted(page.evaluate("window.saved")) == [
        ["five.json", "data:application/json"],
        ["five.png", "data:image/png"],
        ["five.svg", "blob"],
    ]
    assert page.problems == []


def test_hostile_labels_run_nothing(browser: Browser, tmp_path: Path) -> None:
    path = write_report(demo_report(HOSTILE, count=5), tmp_path)
    page = drawn(browser, path)
    assert page.evaluate("window.owned === undefined")
    assert page.problems == []
    assert [state for _, state, *_ in page.evaluate(CHARTS)] == ["drawn"] * len(MARKS)


def test_prints(browser: Browser, report: Path, tmp_path: Path) -> None:
    pdf = drawn(browser, report).pdf(tmp_path / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") <= 12
