"""The LoRA intervention end to end on small real architectures, its split, its answers and its refusals."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from modegap import cli
from modegap.analyses.gmi.information import probe_information, split_information
from modegap.analyses.lora import LoraConfig, LoraResult, lora
from modegap.analyses.lora import compute as compute_module
from modegap.analyses.lora.asking import first_choice
from modegap.analyses.lora.split import load_split, make_split
from modegap.analyses.lora.task import answers_of, settle
from modegap.analyses.report import write_report
from modegap.analyses.saved import load_result, save_result
from modegap.analyses.study import load_study, study_report
from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.errors import EngineError
from modegap.engine.replay import Replay, cross_scores
from modegap.engine.replay.source import _Opener
from modegap.stores import ActivationStore, StoreError

here = Path(__file__)
made = SimpleNamespace(**runpy.run_path(str(here.parents[1] / "engine" / "lora" / "lora_material.py")))
COUNT = 120
OPTIONS: dict[str, Any] = {
    "question": made.QUESTION,
    "epochs": 6,
    "lr": 1e-2,
    "patience": 6,
    "rank": 4,
    "batch_size": 16,
    "points": ["llm_hidden_1", "llm_final"],
    "draws": 200,
    "alternatives": 7,
    "max_new_tokens": 4,
    "checkpointing": False,
}


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    loaded, store = made.captured(folder, request.param, COUNT)
    return loaded, store, folder


@pytest.fixture(scope="module")
def result(case: Any) -> LoraResult:
    loaded, store, folder = case
    return lora(loaded, store, "kind", folder / "out", **OPTIONS)


def test_the_label_is_unlocked_and_the_control_does_not_unlock_it(case: Any, result: LoraResult) -> None:
    base, label, control = (result.arm(name).ask("kind") for name in ("base", "label", "control"))
    assert base.accuracy.value < 0.75
    assert label.accuracy.value > 0.95
    assert label.accuracy.value > control.accuracy.value + 0.1
    assert label.access.gmi.value > base.access.gmi.value + 0.2
    assert label.access.delta.value < base.access.delta.value - 0.2
    assert label.access.information == base.access.information
    assert base.access.information.value > 0.4  # it was there before
    written = result.arm("label").written
    assert written.accuracy.value > 0.9
    assert written.unanswered < 0.1
    moved = {(x.arm, x.quantity, x.label): x for x in result.changes() if not x.point}
    assert moved["label", "task accuracy", "kind"].moved
    assert moved["label", "Δ_access", "kind"].difference.high < 0
    assert moved["label", "GMI of the texts", ""].before == result.arm("base").gmi.mean.value


def test_every_number_is_of_samples_that_no_training_saw(case: Any, result: LoraResult) -> None:
    folder = case[2]
    split = load_split(folder / "out" / "training" / "split.json")
    parts = [set(part) for part in (split.train, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == COUNT
    assert [len(part) for part in parts] == [result.n_train, result.n_validation, result.n_test]
    for name in ("held_out.zarr", "label/store.zarr", "control/store.zarr"):
        assert set(ActivationStore.open(folder / "out" / name).samples) == parts[2]
    for arm in result.arms:
        assert all(set(asked.ids) <= parts[2] for asked in arm.asked)
        assert set(arm.sensitivity.ids) <= parts[2]
        assert arm.probes.cells[0].n <= len(parts[2])
    assert result.arm("base").probes.points == ("adapter_output", "llm_hidden_1", "llm_final")
    assert result.arm("label").probes.points == ("llm_hidden_1", "llm_final")


def test_saved_adapters_give_the_reported_scores_with_plain_peft(case: Any, result: LoraResult) -> None:
    loaded, _, folder = case
    asked = result.arm("label").ask("kind")
    held_out = ActivationStore.open(folder / "out" / "held_out.zarr")
    model = PeftModel.from_pretrained(loaded.model, result.arm("label").adapter)
    try:
        source = made.question_source(loaded, held_out)
        answers = answers_of(loaded, list(made.CLASSES), None)
        scores = np.stack(cross_scores(Replay(loaded, source), [answers] * len(source), total=True))
        own = np.array([made.CLASSES.index(value) for value in source.labels["kind"]])
        np.testing.assert_array_equal((scores.argmax(axis=1) == own).astype(float), asked.correct)
    finally:
        model.unload()
    assert {path.suffix for path in Path(result.arm("label").adapter).iterdir()} == {
        ".json",
        ".md",
        ".safetensors",
    }


def test_a_second_call_trains_nothing(
    case: Any, result: LoraResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loaded, store, folder = case

    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(compute_module, "train", refuse)
    again = lora(loaded, store, "kind", folder / "out", **OPTIONS)
    assert again.to_json() == result.to_json()
    with pytest.raises(ValueError, match=r"holds another run \(lr differ\)"):
        lora(loaded, store, "kind", folder / "out", **{**OPTIONS, "lr": 1e-3})
    with pytest.raises(ValueError, match=r"split\.json does not fit this run \(label differ\)"):
        lora(loaded, store, "hue", folder / "out", **OPTIONS)
    # the command: a YAML file with the options
    monkeypatch.setattr("modegap._facade.load", lambda *args, **more: loaded)
    (folder / "o.yaml").write_text(json.dumps(OPTIONS))
    args = ["lora", "m", str(store.path), "kind", str(folder / "out"), "--config", str(folder / "o.yaml")]
    assert cli.main([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == again.to_json()["changes"]
    assert load_result(folder / "out" / "lora.json").to_json()["arms"] == again.to_json()["arms"]


def test_tables_figure_and_files(result: LoraResult, tmp_path: Path) -> None:
    after = load_result(save_result(result, tmp_path / "l.json"))
    assert after.to_json() == result.to_json()
    json.dumps(result.to_json(), allow_nan=False)
    comparison, changes, training = result.tables()
    assert [row[0] for row in comparison.rows] == ["base", "LoRA: kind", "LoRA: texts (control)"]
    assert comparison.rows == result.table().rows
    assert {row[1] for row in changes.rows} == {
        "task accuracy",
        "GMI(S|q)",
        "Δ_access",
        "written accuracy",
        "probe accuracy",
        "L_log",
        "GMI of the texts",
    }
    assert {row[0] for row in training.rows} == {"LoRA: kind", "LoRA: texts (control)"}
    assert sum(bool(row[-1]) for row in training.rows) == 2
    assert "<svg" in result._repr_html_()
    # in a study's folder, or in one below it
    (tmp_path / "tiny" / "lora-kind").mkdir(parents=True)
    save_result(result, tmp_path / "tiny" / "lora-kind" / "lora.json")
    study = load_study(tmp_path / "tiny")
    assert [one.label for one in study.lora] == ["kind"]
    assert [one.label for one in load_study(tmp_path / "tiny" / "lora-kind").lora] == ["kind"]
    report = study_report([study])
    assert [section.anchor for section in report.sections] == ["lora"]
    assert any("trained for kind" in line and "control" in line for line in report.summary)
    page = write_report(report, tmp_path / "page").read_text()
    assert "LoRA: kind" in page
    with pytest.raises(KeyError):
        result.arm("other")
    with pytest.raises(KeyError):
        result.arm("base").ask("other")


def test_mistakes_are_errors_before_training(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, store, _ = case

    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("it ran")

    for name in ("train", "extract_replayed"):
        monkeypatch.setattr(compute_module, name, refuse)

    def call(label: str = "kind", of: Any = store, **options: Any) -> None:
        lora(loaded, of, label, tmp_path / "out", **{**OPTIONS, **options})

    with pytest.raises(StoreError, match=r"unknown label 'kin', did you mean 'kind'"):
        call("kin")
    with pytest.raises(StoreError, match="sit"):
        call(group="sit")
    with pytest.raises(StoreError, match="hu"):
        call(questions={"hu": "a"})
    with pytest.raises(ValueError, match=r"no choice among classes.*name one of kind, hue"):
        call("text")
    with pytest.raises(ValueError, match=r"classes have fewer than 10 samples .*lower min_per_class"):
        call("site")
    with pytest.raises(ValueError, match="leave fewer than one a class"):
        call(min_per_class=1, n_samples=12)
    with pytest.raises(EngineError, match=r"the same tokens of 's0' and 's1'.*verbalise"):
        call("site", min_per_class=1, test_fraction=0.4, validation_fraction=0.3)
    with pytest.raises(EngineError, match=r"no linear layer 'q_prj'; did you mean 'q_proj'"):
        call(modules=["q_prj"])
    with pytest.raises(EngineError, match="points: 'llm_hidden_9' does not lie behind adapter_output"):
        call(points=["llm_hidden_9"])
    with pytest.raises(ValueError, match="has no option 'learning_rate'"):
        call(learning_rate=1.0)
    with pytest.raises(EngineError, match="reads text only"):
        lora(made.tiny.text("llama"), store, "kind", tmp_path / "out", **OPTIONS)
    silent = made.samples(made_family(loaded), 24)
    silent = [Sample(s.id, None, s.media, labels={**s.labels, "one": "cat"}) for s in silent]
    config = ExtractConfig("m", "d", str(tmp_path / "s.zarr"), ("adapter_output",), batch_size=8)
    mute = extract(config, model=loaded, data=ListDataset(silent, "silent"))
    with pytest.raises(EngineError, match=r"no texts for the control.*control=False"):
        call(of=mute, min_per_class=2)
    with pytest.raises(ValueError, match="the class 'cat' only"):
        call("one", of=mute, control=False)
    assert not (tmp_path / "out" / "training" / "run.json").exists()
    for wrong in (
        {"dropout": 1.0},
        {"rank": 0},
        {"modules": "q_proj"},
        {"modules": ()},
        {"test_fraction": 0.95},
        {"verbalise": "it"},
        {"score": "sum"},
        {"level": 1.0},
        {"n_samples": 0},
        {"epochs": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LoraConfig(**wrong)


def test_samples_without_finite_rows_or_a_label_are_left_out_before_training(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _, _ = case
    samples = made.samples(made_family(loaded), 60)
    for number in (3, 17):
        samples[number] = replace(samples[number], labels={**samples[number].labels, "kind": None})
    config = ExtractConfig(
        "m", "d", str(tmp_path / "s.zarr"), ("adapter_output",), batch_size=8, store_dtype="float32"
    )
    store = extract(config, model=loaded, data=ListDataset(samples, "gaps"))
    whole = _Opener._read
    broken: dict[str, float] = {samples[5].id: np.nan, samples[40].id: np.inf}

    def read(self: Any, item: Any) -> Any:  # as of a store that another program wrote; ours refuse such rows
        rows = whole(self, item)
        rows[-1, 7] = broken.get(item.id, rows[-1, 7])
        return rows

    monkeypatch.setattr(_Opener, "_read", read)

    def settled(model: Any = loaded, progress: Any = None) -> Any:
        return settle(model, store, "kind", LoraConfig(**OPTIONS), tmp_path / "split.json", progress)

    seen: list[tuple[int, int]] = []
    task = settled(progress=lambda *at: seen.append(at))
    assert task.left_out == tuple(
        (samples[n].id, why)
        for n, why in (
            (3, "it has no value of 'kind'"),
            (5, "its rows hold NaN or infinities"),
            (17, "it has no value of 'kind'"),
            (40, "its rows hold NaN or infinities"),
        )
    )
    assert seen[-1] == (58, 58)
    assert len(task.source) == 56
    assert task.source.ids == task.texts.ids == task.prompts.ids
    split = task.split
    assert {*split.train, *split.validation, *split.test} == set(task.source.ids)
    broken = {samples[8].id: 1e5}
    half = made.tiny.FAMILIES[made_family(loaded)][0]()
    half.model.half()
    with pytest.raises(EngineError, match=rf"rows of {samples[8].id} hold .*6\.55e\+04.*bfloat16"):
        settled(half)
    broken = {sample.id: np.nan for sample in samples}
    with pytest.raises(EngineError, match=r"no sample of .* is left: its rows hold NaN"):
        lora(loaded, store, "kind", tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "training" / "run.json").exists()


def made_family(loaded: Any) -> str:
    return "audio" if loaded.modality == "audio" else "llava"


def test_without_texts_there_is_no_control_and_no_text_quantity(case: Any, tmp_path: Path) -> None:
    loaded, _, _ = case
    silent = [Sample(s.id, None, s.media, labels=s.labels) for s in made.samples(made_family(loaded), 60)]
    config = ExtractConfig(
        "m", "d", str(tmp_path / "s.zarr"), ("adapter_output",), batch_size=8, rows="tokens"
    )
    store = extract(config, model=loaded, data=ListDataset(silent, "silent"))
    options = {
        **OPTIONS,
        "epochs": 1,
        "control": False,
        "group": "site",
        "generate": False,
        "labels": ["kind"],
    }
    found = lora(loaded, store, "kind", tmp_path / "out", **options)
    assert [arm.name for arm in found.arms] == ["base", "label"]
    assert found.arm("label").sensitivity is None
    assert found.arm("label").gmi is None
    assert found.arm("label").written is None
    split = load_split(tmp_path / "out" / "training" / "split.json")
    site = dict(zip(store.samples, store.labels["site"].values, strict=True))
    sites = [{site[name] for name in part} for part in (split.train, split.validation, split.test)]
    assert len(set.union(*sites)) == sum(map(len, sites))
    assert len(found.tables()) == 3
    assert "<svg" in found._repr_html_()


def test_a_split_keeps_the_classes_in_proportion() -> None:
    codes = np.repeat([0, 1, 2], [200, 60, 40])
    ids = [f"i{n}" for n in range(300)]
    config = LoraConfig(test_fraction=0.2, validation_fraction=0.1)
    found = make_split("kind", ids, codes, None, config)
    assert found == make_split("kind", ids, codes, None, config)
    assert found != make_split("kind", ids, codes, None, LoraConfig(seed=1))
    of = dict(zip(ids, codes.tolist(), strict=True))
    counts = [Counter(of[name] for name in part) for part in (found.train, found.validation, found.test)]
    assert [sorted(count.items()) for count in counts] == [
        [(0, 140), (1, 42), (2, 28)],
        [(0, 20), (1, 6), (2, 4)],
        [(0, 40), (1, 12), (2, 8)],
    ]


def test_a_split_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    for text in ("{", "[]", '{"format": "other"}', '{"format": "modegap.split/1"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"split\.json"):
            load_split(path)


def test_written_answers_are_read() -> None:
    names = ["top", "top left", "anger"]
    said = [f'{{"answer": "{name}"}}' for name in names]
    assert first_choice('{"answer": "top left"}', said, names) == 1
    assert first_choice('{"answer" : "TOP"}', said, names) == 0
    assert first_choice("I hear anger, at the top.", said, names) == 2
    assert first_choice("at the top  left", names) == 1
    assert first_choice("stopped in anguish", names) == -1
    assert first_choice("", names) == -1


def test_choices_that_begin_another_end_with_the_end(case: Any) -> None:
    loaded, _, _ = case
    end = loaded.collator.tokenizer.eos_token_id
    plain = answers_of(loaded, ["cat", "dog"], end)
    assert [len(answer) for answer in plain] == [1, 1]
    ended = answers_of(loaded, ["cat", "cat dog"], end)
    assert [answer[-1] for answer in ended] == [end, end]
    with pytest.raises(EngineError, match="the same tokens of 'x' and 'y'"):
        answers_of(loaded, ["x", "y"], end)  # both unknown


def test_information_of_a_split_is_that_of_its_fold() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(2, size=900)
    x = (rng.normal(size=(900, 1)) + 2.4 * codes[:, None] - 1.2).astype(np.float32)
    numbers = np.arange(900)
    found = split_information(x, codes, numbers[:600], numbers[600:], folds=5, C=1.0, seed=0)
    whole = probe_information(x, codes, folds=5, C=1.0, seed=0)
    assert len(found.values) == 300
    assert found.values.mean() == pytest.approx(whole.values.mean(), abs=0.08)
    noise = rng.normal(size=(900, 400)).astype(np.float32)
    nothing = split_information(noise, codes, numbers[:120], numbers[600:], folds=5, C=1.0, seed=0)
    assert -0.1 < nothing.values.mean() < 0.1


def test_a_part_without_a_class_is_refused_and_a_split_of_other_options_too(
    case: Any, tmp_path: Path
) -> None:
    loaded, store, _ = case

    def settled(**options: Any) -> Any:
        config = LoraConfig(**{**OPTIONS, **options})
        return settle(loaded, store, "kind", config, tmp_path / "split.json")

    with pytest.raises(ValueError, match=r"the test part has fewer than 2 samples of 'cat'; extract"):
        settled(test_fraction=0.02, validation_fraction=0.02)
    assert not (tmp_path / "split.json").exists()
    task = settled()
    assert settled().split == task.split
    assert task.source.ids == task.texts.ids == task.prompts.ids
    end = loaded.collator.tokenizer.eos_token_id
    assert {item.tokens[-1] for item in (*task.source.items, *task.texts.items)} == {end}
    assert all(len(item.target) == 2 for item in task.source.items)
    with pytest.raises(ValueError, match=r"\(seed differ\)"):
        settled(seed=1)
    with pytest.raises(ValueError, match=r"\(test_fraction differ\)"):
        settled(test_fraction=0.3)
    with pytest.raises(ValueError, match=r"\(the samples differ\)"):
        settled(n_samples=100)
