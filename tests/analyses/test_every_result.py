"""What every result can do: a notebook shows it, JSON and files keep it, LaTeX can print it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

import modegap.analyses
from modegap.analyses import saved
from modegap.analyses.compare import beside_published, encoders, pooling
from modegap.analyses.demo import DemoResult
from modegap.analyses.experiment import CellOutcome, ExperimentResult
from modegap.analyses.report.charts import draw, specification
from modegap.analyses.result import NotebookRepr, Result, Table

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("result_examples.py"))))
SAVED: dict[str, Any] = made.every()


def compared() -> dict[str, Any]:
    studies = made.studies()
    return {
        "pooling": pooling(studies[0].probes, studies[0].media_probes),
        "encoders": encoders(studies)[-1],
        "published": beside_published(studies),
    }


def unsaved() -> dict[str, Any]:
    cells = (CellOutcome("d/m/probe", "failed", 1.5, "one class", "m/probes.json"),)
    return {"run": ExperimentResult("x", cells, None), "demo": DemoResult(Path("report.html"), ())}


ALL = {**SAVED, **compared(), **unsaved()}


def subclasses(kind: type) -> set[type]:
    # a dataclass with slots replaces the class that the decorator was given, which stays a subclass until collected
    live = {
        sub
        for sub in kind.__subclasses__()
        if getattr(importlib.import_module(sub.__module__), sub.__name__) is sub
    }
    return live.union(*map(subclasses, live))


def test_every_result_class_is_tried_here() -> None:
    for info in pkgutil.walk_packages(modegap.analyses.__path__, "modegap.analyses."):
        importlib.import_module(info.name)
    classes = {cls for cls in subclasses(NotebookRepr) if cls.__module__.startswith("modegap.")}
    assert {type(result) for result in ALL.values()} == classes
    kept = {*saved._KINDS.values(), saved.Modes}
    assert {type(result) for result in SAVED.values()} == kept


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_shows_it(name: str) -> None:
    html = ALL[name]._repr_html_()
    assert '<table class="modegap-table">' in html
    assert html.count("<script") == 0
    drawn = hasattr(ALL[name], "figure")
    assert ("<svg" in html) == drawn
    if drawn:
        svg = html[html.index("<svg") : html.rindex("</svg>") + 6]
        assert len(list(ElementTree.fromstring(svg).iter())) > 20


@pytest.mark.parametrize("name", ALL)
def test_its_json_is_strict(name: str) -> None:
    json.dumps(ALL[name].to_json(), allow_nan=False)


@pytest.mark.parametrize("name", ALL)
def test_latex_prints_all_its_tables(name: str) -> None:
    tables: list[Table] = [ALL[name].table(), *(ALL[name].tables() if hasattr(ALL[name], "tables") else ())]
    for table in tables:
        latex = table.to_latex(label="tab:x")
        assert latex.isascii(), [c for c in latex if not c.isascii()]
        assert latex.count("{") == latex.count("}")
        bodies = [part[: part.index(r"\bottomrule")] for part in latex.split(r"\midrule")[1:]]
        rows = [line for body in bodies for line in body.splitlines() if line]
        assert len(rows) == len(table.rows)
        assert all(row.replace(r"\&", "").count("&") == len(table.headers) - 1 for row in rows)
        assert "?" not in latex  # what a character without a command would become


def has_latex() -> bool:
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    found = [
        subprocess.run(["kpsewhich", f"{name}.sty"], capture_output=True) for name in ("booktabs", "graphicx")
    ]
    return all(one.returncode == 0 for one in found)


@pytest.mark.skipif(not has_latex(), reason="needs pdflatex with booktabs and graphicx")
def test_latex_compiles_all_tables_and_none_leaves_the_page(tmp_path: Path) -> None:
    """In LaTeX's own font encoding, without packages beside those that `to_latex` names."""
    tables: list[Table] = []
    for result in ALL.values():
        tables += [result.table(), *(result.tables() if hasattr(result, "tables") else ())]
    tables.append(
        Table("[hostile] {%", ["*", "[a|b]"], [["[1]", "é \\x ~^_&#$"], ["*", "a\n\nb 漢"]], ["<&>"])
    )
    floats = "\\clearpage\n".join(table.to_latex(f"tab:{k}") for k, table in enumerate(tables))
    head = r"\documentclass{article}\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx}"
    source = f"{head}\\begin{{document}}\n{floats}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    said = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, said[-2000:]
    for cut in ("Overfull", "Float too large"):
        assert cut not in said, said[said.index(cut) :][:200]


@pytest.mark.parametrize("name", SAVED)
def test_it_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    before = SAVED[name]
    assert isinstance(before, Result)
    suffix = "safetensors" if name == "align" else "json"
    after = saved.load_result(saved.save_result(before, tmp_path / f"r.{suffix}"))
    assert type(after) is type(before)
    assert after.to_json() == before.to_json()
    assert [c.name for c in after.table().headers] == [c.name for c in before.table().headers]


@pytest.mark.parametrize("name", [name for name in ALL if hasattr(ALL[name], "figure")])
def test_its_figure_holds_its_data(name: str) -> None:
    drawing = draw(specification(ALL[name].figure()), name, name)
    assert drawing.tables
    assert len(drawing.tables[0]) > 0
