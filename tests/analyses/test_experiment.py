"""Experiments from YAML: plans, resuming by content, failures that stay in their cell, kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from modegap import cli
from modegap._facade import load, unsifted_dataset
from modegap.analyses.experiment import ExperimentResult, cells_of, load_experiment, run, shipped
from modegap.analyses.experiment import cells as cells_module
from modegap.analyses.experiment.ledger import Entry, Ledger, locked
from modegap.analyses.experiment.runner import _key
from modegap.analyses.lipschitz.gradients import gradient_pass
from modegap.analyses.study import load_study
from modegap.engine.errors import EngineError

SMALL: dict[str, Any] = {
    "name": "small",
    "models": {"aligned": {"model": "lab:aligned", "text": "text"}, "text": {"model": "lab:text"}},
    "datasets": {"lab": {"dataset": "lab", "options": {"size": 60}}},
    "points": ["adapter_output", "llm_final"],
    "text_points": ["text_embedding", "llm_final"],
    "capture": {"batch_size": 30},
    "analyses": {
        "align": [{"interval": None}, {"point": "llm_final", "interval": None}],
        "probe": {"labels": ["color"], "seeds": [0, 1]},
        "ablate": {"subsets": ["top*2"], "n_samples": 8, "batch_size": 8},
    },
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**SMALL, "out": str(path.parent / "out"), **changes}))
    return path


def go(path: Path, **options: Any) -> ExperimentResult:
    return run(path, load=load, open_data=unsifted_dataset, **options)


def outcomes(result: ExperimentResult) -> dict[str, str]:
    return {cell.cell.removeprefix("lab/"): cell.outcome for cell in result.cells}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    file = write(tmp_path_factory.mktemp("experiment") / "small.yaml")
    return file, go(file)


def test_everything_is_computed_once(done: tuple[Path, ExperimentResult]) -> None:
    file, first = done
    names = ["text/capture", "aligned/capture", "aligned/align-adapter_output", "aligned/align-llm_final",
             "aligned/probe", "aligned/ablate"]  # fmt: skip
    assert outcomes(first) == dict.fromkeys(names, "done")
    assert first.exit_code == 0
    assert first.report is not None
    assert "modes-aligned" in first.report.read_text()
    again = run(file, load=_never, open_data=unsifted_dataset)
    assert outcomes(again) == dict.fromkeys(names, "skipped")


def _never(*args: Any, **options: Any) -> Any:
    raise AssertionError("nothing was left to compute, but a model was loaded")


def test_only_what_changed_is_computed_again(done: tuple[Path, ExperimentResult]) -> None:
    file, _ = done
    analyses = {**SMALL["analyses"], "probe": {"labels": ["color"], "seeds": [0, 2]}}
    other = write(file.with_name("other.yaml"), analyses=analyses)
    changed = outcomes(go(other, report=False))
    assert changed.pop("aligned/probe") == "done"
    assert set(changed.values()) == {"skipped"}
    modes = file.parent / "out" / "aligned" / "modes-adapter_output.safetensors"
    modes.unlink()
    planned = outcomes(go(other, dry_run=True))
    todo = {name for name, outcome in planned.items() if outcome == "to do"}
    assert todo == {"aligned/align-adapter_output", "aligned/ablate"}
    assert not modes.exists()
    again = outcomes(go(other, report=False))
    assert again["aligned/align-adapter_output"] == "done"
    assert again["aligned/probe"] == "skipped"


def test_other_weights_in_a_folder_are_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    experiment = load_experiment(
        write(tmp_path / "a.yaml", models={**SMALL["models"], "text": {"model": str(folder)}})
    )
    ledger = Ledger(tmp_path)
    keys = []
    for value in (0.0, 1.0, 1.0):
        save_file({"w": torch.full((8,), value)}, folder / "model.safetensors")
        keys.append({cell.name: _key(cell, ledger, experiment) for cell in cells_of(experiment)})
    changed = {name for name, key in keys[0].items() if keys[1][name] != key}
    assert changed == {
        cell.name for cell in cells_of(experiment) if cell.needs_model and cell.model == "text"
    }
    assert changed
    assert keys[1] == keys[2], "written again, with the same content"


def test_a_failing_cell_stops_only_what_reads_it(tmp_path: Path) -> None:
    analyses = {"align": {"point": "llm_final", "text_point": "nowhere"}, "pertype": {},
                "probe": {"labels": ["color"], "seeds": [0]}}  # fmt: skip
    file = write(tmp_path / "failing.yaml", analyses=analyses)
    result = go(file)
    found = outcomes(result)
    assert found["aligned/align-llm_final"] == "failed"
    assert found["aligned/pertype"] == "blocked"
    assert found["aligned/probe"] == "done"
    assert result.exit_code == 1
    assert result.report is not None
    page = result.report.read_text()
    assert "What is missing" in page
    assert "nowhere" in page
    entry = Ledger(tmp_path / "out").last["lab/aligned/align-llm_final"]
    assert (entry.outcome, entry.traceback) == ("failed", "")
    assert "nowhere" in entry.message


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path / "killed.yaml")
    ledger = tmp_path / "out" / "ledger.jsonl"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modegap", "run", str(file), "--quiet"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 240
    while child.poll() is None and not (ledger.is_file() and len(ledger.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline, "the run wrote no ledger"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with ledger.open("a") as torn:
        torn.write('{"cell": "lab/aligned/pro')
    before = {name for name, entry in Ledger(tmp_path / "out").last.items() if entry.outcome == "done"}
    result = go(file)
    found = {cell.cell: cell.outcome for cell in result.cells}
    assert {name for name, outcome in found.items() if outcome == "skipped"} == before
    assert set(found.values()) <= {"skipped", "done"}
    assert len(before) >= 3
    assert result.report is not None
    assert set(Ledger(tmp_path / "out").last) == set(found)


@pytest.mark.slow
def test_kills_at_any_moment_change_no_result(tmp_path: Path) -> None:
    """Runs killed at random moments, as often as it takes, end in the same bytes as one that was left alone."""
    few = {"n_samples": 8, "batch_size": 8, "draws": 20}
    analyses = {**SMALL["analyses"], "lipschitz": few, "gradproj": few}
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    file, whole = (
        write(tmp_path / name / "x.yaml", analyses=analyses, out="out") for name in ("killed", "whole")
    )  # results name their stores: by the same relative path
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(path: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "modegap", "run", path.name, "--quiet"]
        null = subprocess.DEVNULL
        return subprocess.Popen(command, stdout=null, stderr=null, env=env, cwd=path.parent)

    began = time.monotonic()
    assert start(whole).wait() == 0
    took = time.monotonic() - began
    kills = 0
    for part in np.random.default_rng(0).uniform(0.3, 0.9, 6):
        child = start(file)
        time.sleep(part * took)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills >= 2
    assert start(file).wait() == 0
    out = file.parent / "out"
    names = [
        p.relative_to(out) for p in out.rglob("*") if p.suffix in (".json", ".safetensors", ".csv", ".tex")
    ]
    results = [name for name in names if not any(part.endswith(".zarr") for part in name.parts)]
    assert len(results) > 30
    for name in results:
        assert (out / name).read_bytes() == (whole.parent / "out" / name).read_bytes(), name


def test_norms_and_projections_take_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    def counted(replay: Any, *args: Any, **options: Any) -> Any:
        passes.append(bool(args))
        return gradient_pass(replay, *args, **options)

    for module in ("lipschitz", "gradproj"):
        monkeypatch.setattr(f"modegap.analyses.{module}.compute.gradient_pass", counted)
    few = {"n_samples": 8, "batch_size": 8, "draws": 20}
    analyses = {"align": {"interval": None}, "lipschitz": few, "gradproj": few}
    file = write(tmp_path / "one.yaml", analyses=analyses)
    first = go(file, report=False)
    assert first.exit_code == 0
    assert passes == [True]
    said = {cell.cell: cell.message for cell in first.cells}
    assert said["lab/aligned/gradproj"] == "from the pass of lab/aligned/lipschitz"
    assert Ledger(tmp_path / "out").last["lab/aligned/gradproj"].message == said["lab/aligned/gradproj"]
    study = load_study(tmp_path / "out" / "aligned")
    assert study.lipschitz is not None
    assert study.gradproj is not None

    # the norms are there: the projections alone are made again, and are the same
    (tmp_path / "out" / "aligned" / "gradproj.json").unlink()
    go(file, report=False)
    assert passes == [True, True]
    again = load_study(tmp_path / "out" / "aligned").gradproj
    assert again is not None
    np.testing.assert_allclose(again.g, study.gradproj.g, rtol=1e-6)

    # with other options each takes its own
    other = {**analyses, "gradproj": {**few, "n_samples": 6}}
    go(write(tmp_path / "two.yaml", analyses={**other, "lipschitz": {**few, "seed": 1}}), report=False)
    assert passes == [True, True, False, True]


def test_modes_of_another_width_fail_by_themselves(tmp_path: Path) -> None:
    file = write(
        tmp_path / "x.yaml",
        points=["encoder_output", "adapter_output"],
        analyses={
            "align": {"point": "encoder_output", "text_point": "text_embedding", "interval": None},
            "lipschitz": {"n_samples": 4, "batch_size": 4, "draws": 20},
            "gradproj": {"n_samples": 4, "batch_size": 4, "draws": 20},
        },
    )
    found = outcomes(go(file, report=False))
    assert found["aligned/align-encoder_output"] == "failed"  # 96 channels against 128
    assert found["aligned/gradproj"] == "blocked"
    assert found["aligned/lipschitz"] == "done"


def test_a_data_set_has_options_of_its_own(tmp_path: Path) -> None:
    sets = {
        "lab": {
            "dataset": "lab",
            "options": {"size": 60},
            "analyses": {"ablate": None, "distance": {"pca": 8}},
        },
        "other": {"dataset": "lab", "options": {"size": 90}, "analyses": {"probe": {"labels": ["size"]}}},
    }
    analyses = {**SMALL["analyses"], "probe": [{"seeds": [0]}, {"seeds": [0], "pool": "modality"}]}
    planned = cells_of(load_experiment(write(tmp_path / "x.yaml", datasets=sets, analyses=analyses)))
    cells = {cell.name: cell for cell in planned}
    assert "lab/aligned/ablate" not in cells
    assert "other/aligned/ablate" in cells
    assert "other/aligned/distance" not in cells
    assert cells["lab/aligned/distance"].config.pca == 8
    assert cells["lab/aligned/probe"].config.labels is None
    both = [cells[f"other/aligned/probe{suffix}"] for suffix in ("", "-modality")]
    assert [(c.config.labels, c.config.pool, c.config.seeds) for c in both] == [
        (("size",), "stored", (0,)),
        (("size",), "modality", (0,)),
    ]
    assert [c.file for c in both] == ["other/aligned/probes.json", "other/aligned/probes-modality.json"]


def test_a_newer_analysis_is_run_again(
    done: tuple[Path, ExperimentResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**cells_module.ANALYSES, "probe": replace(cells_module.ANALYSES["probe"], version=2)}
    monkeypatch.setattr(cells_module, "ANALYSES", newer)
    planned = outcomes(go(done[0], dry_run=True))
    assert {name for name, outcome in planned.items() if outcome == "to do"} == {"aligned/probe"}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(EngineError, match="another run"), locked(tmp_path):
        pass


def test_a_ledger_line_after_a_torn_one_is_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(Entry("a", "k", "done"))
    with ledger.path.open("a") as torn:
        torn.write('{"cell": "b"')
    Ledger(tmp_path).add(Entry("c", "k", "failed", message="why"))
    assert {name: entry.outcome for name, entry in Ledger(tmp_path).last.items()} == {
        "a": "done",
        "c": "failed",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modles": {}}, "unknown key 'modles'; did you mean 'models'"),
        (
            {"models": {"a": {"model": "lab:plain", "text": "tex"}, "text": {"model": "lab:text"}}},
            "did you mean",
        ),
        ({"models": {"a": {"modl": "lab:plain"}}}, "models.a: unknown key 'modl'"),
        ({"models": {"a": {"model": "lab:plain"}}}, "none has a `text`"),
        ({"models": {}}, "must list at least one"),
        ({"models": {"../a": {"model": "x", "text": "t"}, "t": {"model": "y"}}}, "names a folder"),
        ({"datasets": {"d": {}}}, "datasets.d: dataset is missing"),
        ({"points": "adapter_output"}, "x.yaml.points: got 'adapter_output', expected Sequence[str]"),
        ({"analyses": ["align"]}, "x.yaml.analyses: got ['align'], expected Mapping[str, Any]"),
        ({"models": {"a": {"model": 3}}}, "models.a.model: got 3, expected str"),
        ({"datasets": {"d": {"dataset": "lab", "options": "small"}}}, "datasets.d.options: got 'small'"),
        ({"datasets": {"d": {"dataset": "lab", "analysis": {}}}}, "did you mean 'analyses'"),
    ],
)
def test_mistakes_in_the_file_name_the_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_experiment(write(tmp_path / "x.yaml", **changes))


@pytest.mark.parametrize(
    ("analyses", "message"),
    [
        ({"prob": {}}, "analyses: no 'prob'; did you mean 'probe'"),
        ({"probe": {"label": []}}, "analyses.probe: unknown key 'label'"),
        ({"probe": {"C": -1}}, "analyses.probe: C: got -1"),
        ({"probe": {"seeds": 3}}, "analyses.probe.seeds: got 3, expected Sequence[int]"),
        (
            {"probe": {"labels": "digit"}},
            "analyses.probe.labels: got 'digit', expected Sequence[str] | None",
        ),
        ({"probe": {"law": "papr"}}, "analyses.probe.law: got 'papr', expected Literal['default', 'paper']"),
        ({"ablate": {}}, "analyses.ablate reads align"),
        ({"distance": [{}, {}]}, "expected one set of options (only align, probe, lora take several)"),
        (
            {"align": [{}, {}]},
            "analyses.align: point adapter_output, adapter_output: one of them stands twice",
        ),
        ({"probe": [{"pool": "all"}, {"pool": "all"}]}, "analyses.probe: pool all, all"),
        ({"probe": ["all"]}, "analyses.probe: got 'all', expected settings by name"),
    ],
)
def test_mistakes_in_the_analyses_name_the_place(tmp_path: Path, analyses: Any, message: str) -> None:
    experiment = load_experiment(write(tmp_path / "x.yaml", analyses=analyses))
    with pytest.raises(ValueError, match=re.escape(message)):
        cells_of(experiment)


def test_shipped_experiments_have_a_plan() -> None:
    assert set(shipped()) == {"lab", "paper", "template"}
    counts = {name: len(cells_of(load_experiment(name))) for name in shipped()}
    paper = cells_of(load_experiment("paper"))
    assert counts["lab"] == 1 + 2 * 7
    kinds = Counter(cell.kind for cell in paper)
    # 9 pairs of a model and a data set, and 4 texts: one decoder a data set
    assert kinds == {
        **dict.fromkeys(("distance", "pertype", "lipschitz", "gradproj", "ablate", "gmi", "bound"), 9),
        **{"capture": 9 + 4, "align": 3 * 9, "probe": 2 * 9, "swap": 4, "lora": 1},
    }
    media = next(cell for cell in paper if cell.name == "cremad/ultravox/probe-modality")
    assert (media.config.pool, media.config.labels) == ("modality", ("emotion", "speaker", "lexical"))
    assert len({cell.file for cell in paper}) == len(paper)
    seen: set[str] = set()
    for cell in paper:
        assert set(cell.reads.values()) <= seen
        seen.add(cell.name)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "x.yaml")
    assert cli.main(["run", str(file), "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {cell["outcome"] for cell in shown["cells"]} == {"to do"}
    assert not (tmp_path / "out").exists()
    assert cli.main(["run", "template", "--show"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["models"]["mine"]["text"] == "decoder"
    assert cli.main(["run", "nothing.yaml"]) == 1
    assert "no experiment nothing.yaml" in capsys.readouterr().err
