"""Every decoder experiment in one study, and the study in the report."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import modegap as mg
from modegap import cli
from modegap.analyses.saved import save_result
from modegap.analyses.study import load_study

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("replay_cases.py"))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    case: Any = cases.make_case(root / "stores", "llava", 12)
    few = {"draws": 20, "batch_size": 12}
    norms, along = mg.gradients(case.loaded, case.modal, case.modes, **few)
    used = mg.gmi(case.loaded, case.modal, case.text, labels=["kind"], alternatives=3, folds=2, **few)
    results = {
        "ablation": mg.ablate(case.loaded, case.modal, case.modes, ["ms", "each*3"], **few),
        "lipschitz": norms,
        "gradproj": along,
        "swap": mg.swap(case.loaded, case.modal, case.modes, by="kind", **few),
        "gmi": used,
        "bound": mg.bound(case.modal, case.text, norms, used, labels=["kind"]),
    }
    for study in ("one", "two"):
        (root / study).mkdir()
        for name, result in results.items():
            save_result(result, root / study / f"{name}.json")
    return root


def test_a_study_holds_every_result(folder: Path) -> None:
    study = load_study(folder / "one")
    for name in ("ablation", "lipschitz", "gradproj", "swap", "gmi", "bound"):
        assert getattr(study, name) is not None, name


def test_the_report_shows_every_result(folder: Path, capsys: pytest.CaptureFixture) -> None:
    out = folder / "report"
    assert cli.main(["report", str(out), "--studies", f"{folder / 'one'},{folder / 'two'}", "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"]).read_text()
    for anchor in ("ablation", "sensitivity", "swap", "gmi", "bounds"):
        assert f'id="{anchor}"' in page, anchor
    for text in (
        "Gradient norms of the models",
        "one: gradients along modes",
        "two: kind swapped",
        "one: what the decoder can use",
        "Probe penalty",
        "Single modes removed",
        "L_log has mean",
    ):
        assert text in page, text
    files = {file.name for file in out.rglob("*.csv")}
    assert any("lipschitz-one" in name for name in files)
    assert any("bound-two" in name for name in files)
