"""LoRA interventions as cells of an experiment: made once, made again where they must be, resumed after a kill."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from modegap.analyses.experiment import ExperimentResult, cells_of, load_experiment
from modegap.analyses.experiment.ledger import Ledger
from modegap.analyses.lora import LoraConfig
from modegap.analyses.lora import compute as compute_module
from modegap.analyses.study import load_study
from modegap.stores import ActivationStore

SCRIPT = Path(__file__).with_name("lora_experiment.py")
tiny = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
CELL = "photos/llava/lora-kind"
WEIGHTS = Path("out") / "llava" / "lora-kind" / "label" / "adapter" / "adapter_model.safetensors"


def outcome(result: ExperimentResult, name: str = CELL) -> str:
    found = {cell.cell: cell for cell in result.cells}[name]
    assert not found.message, found.message
    return found.outcome


def never(*args: Any, **options: Any) -> Any:
    raise AssertionError("this was there already")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentResult]:
    folder = tmp_path_factory.mktemp("lora")
    return folder, tiny.go(tiny.write(folder))


def test_an_intervention_is_a_cell(done: tuple[Path, ExperimentResult]) -> None:
    folder, result = done
    assert [cell.cell for cell in result.cells] == ["photos/text/capture", "photos/llava/capture", CELL]
    assert outcome(result) == "done"
    assert list(Ledger(folder / "out").last[CELL].files) == ["llava/lora-kind/lora.json"]
    study = load_study(folder / "out" / "llava")
    (found,) = study.lora
    assert type(found.config) is LoraConfig
    assert (found.label, found.config.lr, found.dataset) == ("kind", 1e-2, "photos")
    assert found.arm("label").adapter == str((folder / WEIGHTS).parent)
    assert result.report is not None
    assert "trained for kind" in result.report.read_text()
    again = tiny.go(folder / "tiny.yaml", load=never)
    assert {cell.outcome for cell in again.cells} == {"skipped"}


def test_what_changed_is_made_again_and_nothing_else(
    done: tuple[Path, ExperimentResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    weights = (folder / WEIGHTS).read_bytes()
    held_out = folder / "out" / "llava" / "lora-kind" / "held_out.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(compute_module, "train", never)
        # what is measured alone: neither training nor capture
        assert outcome(tiny.go(tiny.write(folder, draws=30), report=False)) == "done"
        assert set(ActivationStore.open(held_out).points) == {"adapter_output", "llm_hidden_1", "llm_final"}
        # hook points: the decoder's states are captured again
        path = tiny.write(folder, draws=30, points=["llm_final"])
        assert outcome(tiny.go(path, report=False)) == "done"
        assert set(ActivationStore.open(held_out).points) == {"adapter_output", "llm_final"}
    assert (folder / WEIGHTS).read_bytes() == weights
    # the training's options, and with others the samples: trained again, the rest of the run stays
    trained = [weights]
    for change in ({"lr": 5e-3}, {"lr": 5e-3, "test_fraction": 0.3}, {"lr": 5e-3, "n_samples": 50}):
        result = tiny.go(tiny.write(folder, **change), report=False)
        assert outcome(result) == "done"
        assert outcome(result, "photos/llava/capture") == "skipped"
        assert (folder / WEIGHTS).read_bytes() not in trained
        trained.append((folder / WEIGHTS).read_bytes())
    # the first one once more: the same as before, and nothing of the others is left
    assert outcome(tiny.go(tiny.write(folder), report=False)) == "done"
    assert (folder / WEIGHTS).read_bytes() == weights
    study = load_study(folder / "out" / "llava")
    assert (len(study.lora), study.lora[0].n_test) == (1, 12)


def test_a_label_that_is_not_there_fails_by_itself(tmp_path: Path) -> None:
    result = tiny.go(tiny.write(tmp_path, label="knd", labels=None), report=False)
    found = {cell.cell: cell for cell in result.cells}
    assert found["photos/llava/lora-knd"].outcome == "failed"
    assert "did you mean 'kind'" in found["photos/llava/lora-knd"].message
    assert found["photos/llava/capture"].outcome == "done"
    assert Ledger(tmp_path / "out").last["photos/llava/lora-knd"].traceback == ""


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "analyses.lora: label is missing"),
        (None, "analyses.lora: label is missing"),
        ([{}, {}], "analyses.lora: label is missing"),
        ({"label": "kind", "learning_rate": 1}, "analyses.lora: unknown key 'learning_rate'"),
        ({"label": "kind", "rnk": 4}, "analyses.lora: unknown key 'rnk'; did you mean 'rank'"),
        ({"label": "kind", "rank": "many"}, "analyses.lora.rank: got 'many', expected int"),
        ({"label": "kind", "dropout": 1}, "analyses.lora: dropout: got 1"),
        ({"label": "../kind"}, "analyses.lora: label: got '../kind'"),
        ([{"label": "kind"}, {"label": "kind"}], "analyses.lora: label kind, kind: one of them stands twice"),
    ],
)
def test_mistakes_name_the_place(tmp_path: Path, lora: Any, message: str) -> None:
    path = tiny.write(tmp_path)
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "analyses": {"lora": lora}}))
    with pytest.raises(ValueError, match=re.escape(message)):
        cells_of(load_experiment(path))


def test_a_model_has_options_of_its_own(tmp_path: Path) -> None:
    path = tiny.write(tmp_path)
    content = yaml.safe_load(path.read_text())
    one = content["models"]["llava"]
    content["models"] |= {
        "other": {**one, "analyses": {"lora": {"rank": 8}, "probe": {}}},
        "third": {**one, "analyses": {"lora": None}},
    }
    content["analyses"]["lora"] = [{"label": "kind", "rank": 2}, {"label": "hue"}]
    path.write_text(yaml.safe_dump(content))
    cells = {cell.name: cell for cell in cells_of(load_experiment(path)) if cell.kind != "capture"}
    assert {name: getattr(cell.config, "rank", None) for name, cell in cells.items()} == {
        "photos/llava/lora-kind": 2,
        "photos/llava/lora-hue": 16,
        "photos/other/lora-kind": 8,
        "photos/other/lora-hue": 8,
        "photos/other/probe": None,
    }
    assert {cell.folder for cell in cells.values()} == {"llava", "other"}
    content["models"]["other"]["analyses"] = {"lra": {}}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"models\.other\.analyses: no 'lra'; did you mean 'lora'"):
        cells_of(load_experiment(path))


def test_the_published_intervention_is_shipped() -> None:
    cells = {cell.name: cell for cell in cells_of(load_experiment("paper")) if cell.kind == "lora"}
    assert list(cells) == ["cremad/ultravox/lora-emotion"]
    c = cells["cremad/ultravox/lora-emotion"].config
    assert (c.label, c.rank, c.alpha, c.dropout, c.modules) == (
        "emotion", 16, 32, 0.05, ("q_proj", "k_proj", "v_proj", "o_proj"))  # fmt: skip
    assert (c.lr, c.weight_decay, c.effective_batch, c.clip, c.epochs, c.patience) == (
        1e-4,
        0.01,
        8,
        1.0,
        5,
        2,
    )
    assert (c.checkpointing, c.generate, c.max_new_tokens, c.say("fear")) == (
        True,
        True,
        10,
        '{"answer": "fear"}',
    )
    asked = c.ask("emotion", ("anger", "fear"))
    assert 'CHOICES: ["anger", "disgust", "fear", "happy", "neutral", "sadness"]' in asked
    assert asked.endswith('Output JSON only: {"answer": "<exact choice>"}')
    for name in ("lab", "template"):
        assert not [cell for cell in cells_of(load_experiment(name)) if cell.kind == "lora"]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_the_training_goes_on_there(tmp_path: Path) -> None:
    """Killed at a checkpoint inside an epoch, again in the next one; the adapter ends in the same bytes."""
    options = {"count": 120, "epochs": 6, "patience": 6, "save_every": 2, "effective_batch": 4}
    whole = tiny.write(tmp_path / "whole", **options)
    assert tiny.go(whole, report=False).exit_code == 0
    path = tiny.write(tmp_path / "killed", **options)
    checkpoint = path.parent / "out" / "llava" / "lora-kind" / "label" / "checkpoint.safetensors"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    written: list[int] = []
    for _ in range(2):
        child = subprocess.Popen([sys.executable, str(SCRIPT), str(path)], env=env)
        deadline = time.monotonic() + 240
        while child.poll() is None and (not checkpoint.is_file() or checkpoint.stat().st_mtime_ns in written):
            assert time.monotonic() < deadline, "the training wrote no checkpoint"
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        written.append(checkpoint.stat().st_mtime_ns)
    assert CELL not in Ledger(path.parent / "out").last
    seen: list[tuple[str, int]] = []
    result = tiny.go(path, report=False, step=lambda what, done, total: seen.append((what, done)))
    assert outcome(result) == "done"
    assert outcome(result, "photos/llava/capture") == "skipped"
    first = next(done for what, done in seen if what.endswith("training: label"))
    assert first > 8  # not from the beginning: two steps of four samples lie behind the first checkpoint
    assert (path.parent / WEIGHTS).read_bytes() == (whole.parent / WEIGHTS).read_bytes()
    one, other = (load_study(file.parent / "out" / "llava").lora[0] for file in (whole, path))
    assert one.to_json()["changes"] == other.to_json()["changes"]
    assert not checkpoint.exists()
