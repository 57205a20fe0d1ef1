"""Poolings, models under one text law and the published numbers, side by side."""

from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from modegap import cli
from modegap.analyses.compare import beside_published, encoders, pooling, published
from modegap.analyses.compare.against import allowance, judge
from modegap.analyses.compare.differences import accuracy_difference
from modegap.analyses.compare.paper import Published, system_of
from modegap.analyses.compare.quantities import product
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.saved import save_result
from modegap.analyses.study import Study, load_study

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("result_examples.py"))))


def test_differences_on_the_same_splits_are_paired_by_seed() -> None:
    first, second = (made.probes(seed=seed).cell("llm_final", "speaker") for seed in (0, 1))
    found = accuracy_difference(first, second, 0.95)
    assert found is not None
    deltas = [b.accuracy - a.accuracy for a, b in zip(first.scores, second.scores, strict=True)]
    half = stats.t.ppf(0.975, 4) * np.std(deltas, ddof=1) * math.sqrt(1 / 5 + 524 / 2096)
    assert found.paired
    assert found.value == pytest.approx(np.mean(deltas))
    assert (found.low, found.high) == (
        pytest.approx(np.mean(deltas) - half),
        pytest.approx(np.mean(deltas) + half),
    )


def test_differences_of_other_samples_are_not_paired() -> None:
    first, second = (made.probes(seed=seed).cell("llm_final", "speaker") for seed in (0, 1))
    second = replace(second, n=second.n + 1)
    found = accuracy_difference(first, second, 0.95)
    assert found is not None
    assert not found.paired
    one, other = first.interval(), second.interval()
    assert one is not None
    assert other is not None
    assert found.high == pytest.approx(
        found.value + math.hypot(first.accuracy - one[0], other[1] - second.accuracy)
    )
    assert accuracy_difference(first, replace(second, scores=()), 0.95) is None


def test_pooling_lines_up_the_cells_and_says_what_is_missing() -> None:
    everything, media = made.probes(seed=3), made.probes(seed=3, pool="modality", shift=0.05)
    found = pooling(everything, media)
    assert len(found.pairs) == len(everything.cells)
    speaker = next(p for p in found.pairs if (p.point, p.label) == ("llm_final", "speaker"))
    assert speaker.difference is not None
    assert speaker.difference.value == pytest.approx(0.05)
    assert speaker.difference.clear
    table = found.table()
    assert "8 of 8 intervals exclude 0" in table.notes[0]
    assert any("only the class 'x'" in note for note in table.notes)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["analysis"] == "pooling"


def test_pooling_refuses_what_is_not_comparable() -> None:
    everything, media = made.probes(), made.probes(pool="modality")
    with pytest.raises(ValueError, match="expected probes with pool='all'"):
        pooling(media, everything)
    with pytest.raises(ValueError, match="differ in C"):
        pooling(everything, replace(media, config=replace(media.config, C=2.0)))
    with pytest.raises(ValueError, match="in common"):
        pooling(everything, replace(media, cells=()))


def test_models_of_one_text_store_and_data_set_form_a_group() -> None:
    groups = encoders(made.studies())
    assert [group.models for group in groups] == [
        ("ultravox on librispeech", "qwen2audio on librispeech"),
        ("ultravox on cremad", "qwen2audio on cremad"),
        ("ultravox on esc50", "qwen2audio on esc50"),
        ("llava on coco", "prismatic-dinov2 on coco", "prismatic-siglip on coco"),
    ]
    last = groups[-1]
    entries = {(e.label, e.model): e for e in last.entries}
    assert ("object_count", "llava on coco") not in entries
    assert entries["lexical", "llava on coco"].difference is None
    other = entries["lexical", "prismatic-siglip on coco"]
    by_name = {study.name: study for study in made.studies()}
    ends = [
        by_name[name].probes.cell("llm_final", "lexical").accuracy for name in (other.model, last.models[0])
    ]
    assert other.difference is not None
    assert other.difference.value == pytest.approx(ends[0] - ends[1])
    numbers = last.number_table()
    assert [c.name for c in numbers.headers] == ["quantity", *last.models]
    assert "MS modes" in [row[0] for row in numbers.rows]
    assert not encoders(made.studies()[:1])
    json.dumps(last.to_json(), allow_nan=False)


def test_the_published_numbers_are_complete_and_as_printed() -> None:
    numbers = list(published())
    assert len(numbers) == 197
    known = {(n.group, n.system, n.dataset, n.name, n.point): n for n in numbers}
    assert len(known) == len(numbers)
    speaker = known["probes", "ultravox", "cremad", "speaker", "llm_final"]
    half = stats.t.ppf(0.975, 4) * 0.008 * math.sqrt(0.45)
    assert (speaker.value, speaker.half, speaker.basis) == (0.137, pytest.approx(half), "seeds")
    norm = known["sensitivity", "ultravox", "librispeech", "L mean", ""]
    assert (norm.value, norm.half, norm.basis) == (9.08, 1.5, "tolerance")
    modes = known["alignment", "prismatic-dinov2", "coco", "MS modes", ""]
    assert (modes.value, modes.half, modes.basis) == (53, 0.5, "digits")
    count = known["probes", "prismatic-siglip", "coco", "object_count", "llm_hidden_16"]
    assert count.value == 0.652
    loss = known["ablation", "prismatic-dinov2", "coco", "ta", ""]
    assert (loss.value, loss.half) == (-0.07, 1.0)


def test_the_published_intervention_is_as_printed() -> None:
    # Table 3 of the paper: probes at the decoder's end without the LoRA and with it, and the right answers
    table = {
        "before": {"emotion": 0.557, "speaker": 0.137, "lexical": 0.999},
        "after": {"emotion": 0.632, "speaker": 0.135, "lexical": 0.994},
    }
    numbers = [n for n in published() if n.table == "Table 3"]
    assert {(n.system, n.dataset) for n in numbers} == {("ultravox", "cremad")}
    probes = {n.name: n for n in numbers if n.group == "lora_probes"}
    assert {name: n.value for name, n in probes.items()} == {
        f"emotion LoRA, {label} {when}": value for when, row in table.items() for label, value in row.items()
    }
    assert {n.point for n in probes.values()} == {"llm_final"}
    changed = probes["emotion LoRA, emotion after"]
    assert (changed.half, changed.basis) == (0.03, "tolerance")
    answers = {n.name: (n.value, n.basis, n.point) for n in numbers if n.group == "lora"}
    assert answers == {
        "emotion LoRA, before": (0.173, "digits", ""),
        "emotion LoRA, after": (0.618, "digits", ""),
    }
    # without the LoRA it is the study's probe of Table 5
    for label in ("emotion", "speaker"):
        same = next(n for n in published() if (n.group, n.system, n.dataset, n.name, n.point) == (
            "probes", "ultravox", "cremad", label, "llm_final"))  # fmt: skip
        assert probes[f"emotion LoRA, {label} before"].value == same.value


def test_an_intervention_stands_beside_the_published_one() -> None:
    study = next(one for one in made.studies() if one.name == "ultravox on cremad")
    result = study.lora[0]
    base, trained = result.arm("base"), result.arm("label")

    def shifted(value: float) -> Estimate:
        return Estimate(value, value - 0.02, value + 0.02)

    def with_answers(before: float, after: float) -> Study:
        arms = (
            replace(base, written=replace(base.written, accuracy=shifted(before))),
            replace(trained, written=replace(trained.written, accuracy=shifted(after))),
            *result.arms[2:],
        )
        return replace(study, lora=(replace(result, arms=arms),))

    found = beside_published([with_answers(0.18, 0.7)])
    assert found is not None
    rows = {(r.published.group, r.published.name): r for r in found.rows}
    before, after = (rows["lora", f"emotion LoRA, {when}"] for when in ("before", "after"))
    assert (before.found, before.verdict) == (shifted(0.18), "agrees")
    assert (after.found, after.verdict) == (shifted(0.7), "differs")
    assert before.quantity == "right answers, LoRA: emotion LoRA, before"
    for when, arm in (("before", base), ("after", trained)):
        cell = arm.probes.cell("llm_final", "speaker")
        one = rows["lora_probes", f"emotion LoRA, speaker {when}"]
        assert one.found == Estimate(cell.accuracy, *cell.interval())
        assert one.published.point == "llm_final"
    assert any("no switch repeats that" in note for note in found.notes())
    # the default law is not to blame for what no switch repeats
    plain = beside_published([replace(study, lora=())])
    assert plain is not None
    assert not any("LoRA" in note for note in plain.notes())
    assert plain.missing == found.missing + sum(key[0] in ("lora", "lora_probes") for key in rows)
    blamed = [[note for note in one.notes() if "law=paper" in note] for one in (plain, found)]
    assert blamed[0][0].split(" of ")[0] == blamed[1][0].split(" of ")[0]
    # another label, and no written answers: nothing was published for them
    for other in (replace(result, label="speaker"), replace(result, arms=tuple(
        replace(arm, written=None) for arm in result.arms))):  # fmt: skip
        seen = beside_published([replace(study, lora=(other,))])
        assert seen is not None
        assert not [r for r in seen.rows if r.published.group == "lora"]
    json.dumps(found.to_json(), allow_nan=False)
    assert found.figure().to_dict()


@pytest.mark.parametrize(
    ("model", "dataset", "system"),
    [
        ("fixie-ai/ultravox-v0_6-llama-3_1-8b", "librispeech:test-clean", ("ultravox", "librispeech")),
        ("/models/Qwen2-Audio-7B-Instruct", "cremad", ("qwen2audio", "cremad")),
        ("TRI-ML/prismatic-vlms/siglip-224px+7b", "coco:val2017", ("prismatic-siglip", "coco")),
        ("/w/dinov2-224px+7b", "coco:val2017", ("prismatic-dinov2", "coco")),
        ("TRI-ML/prismatic-vlms/prism-dinosiglip-224px+7b", "coco:val2017", None),
        ("llava-hf/llava-1.5-13b-hf", "coco:val2017", None),
        ("fixie-ai/ultravox-v0_6-llama-3_1-8b", "librispeech:test-other", None),
        ("lab:aligned", "lab", None),
    ],
)
def test_a_study_is_matched_by_its_provenance(model: str, dataset: str, system: Any) -> None:
    facts = {"model": model, "dataset": dataset, "as_text": False}
    assert system_of(Study("any", provenance={"modal.zarr": facts})) == system
    assert system_of(Study("any", provenance={"text.zarr": {**facts, "as_text": True}})) is None


def number(value: float, half: float, basis: Any) -> Published:
    return Published("Table 0", "probes", "s", "d", "x", "", value, half, basis)


def test_a_verdict_needs_an_interval_on_one_side() -> None:
    ours = Estimate(1.0, 0.7, 1.1)
    assert allowance(ours, number(0.5, 0.4, "seeds")) == pytest.approx(0.5)  # our lower end: 0.3 below
    assert judge(ours, number(0.5, 0.4, "seeds")) == "agrees"
    assert judge(ours, number(0.49, 0.4, "seeds")) == "differs"
    assert judge(ours, number(1.4, 0.4, "seeds")) == "agrees"  # our upper end: 0.1 above
    assert judge(ours, number(1.42, 0.4, "seeds")) == "differs"
    assert judge(Estimate(1.0), number(1.4, 0.4, "tolerance")) == "agrees"
    assert judge(Estimate(1.0), number(1.5, 0.4, "seeds")) == "differs"
    assert judge(Estimate(1.0), number(1.0, 0.05, "digits")) == "not judged"


def test_studies_stand_beside_what_was_published_for_them() -> None:
    studies = made.studies()
    found = beside_published(studies)
    assert found is not None
    rows = {(r.study, r.published.group, r.published.name, r.published.point): r for r in found.rows}
    near = rows["ultravox on librispeech", "probes", "speaker", "llm_final"]
    cell = studies[0].probes.cell("llm_final", "speaker")
    assert near.found == Estimate(cell.accuracy, *cell.interval())
    assert near.verdict == "agrees"
    assert abs(near.deviation or 9) <= 1
    media = rows["ultravox on cremad", "media_probes", "emotion", "llm_final"]
    assert media.found.value == studies[1].media_probes.cell("llm_final", "emotion").accuracy
    swapped = rows["ultravox on librispeech", "swap", "ms", ""]
    assert (swapped.found.value, swapped.verdict) == (-32.0, "agrees")
    far = rows["qwen2audio on librispeech", "probes", "lexical", "llm_final"]
    assert far.verdict == "differs"  # .60 against .471
    assert sum(found.counts().values()) == len(found.rows)
    measured = {(r.study, r.published) for r in found.rows}
    assert found.missing == len(list(published())) - len(measured)
    assert "law=paper" in " ".join(found.notes())
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["missing"] == found.missing
    assert beside_published([replace(studies[0], provenance={})]) is None


def test_the_paper_s_law_is_told_apart() -> None:
    study = made.studies()[0]
    paper = replace(study, probes=made.probes(law="paper"))
    laws = []
    for one in (study, paper):
        found = beside_published([one])
        assert found is not None
        laws.append([row.published_law for row in found.rows if row.published.group == "probes"])
    assert not any(laws[0])
    assert all(laws[1])


def test_products_carry_both_intervals() -> None:
    found = product(Estimate(2.0, 1.8, 2.2), Estimate(10.0, 9.5, 11.0))
    assert found.value == 20
    assert found.low == pytest.approx(20 * (1 - math.hypot(0.1, 0.05)))
    assert found.high == pytest.approx(20 * (1 + math.hypot(0.1, 0.1)))
    assert product(Estimate(2.0), Estimate(10.0, 9.0, 11.0)) == Estimate(20.0)


def test_a_study_s_folder_holds_both_poolings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    save_result(made.probes(), folder / "probes.json")
    save_result(made.probes(pool="modality"), folder / "probes-modality.json")
    study = load_study(folder)
    assert study.probes is not None
    assert study.media_probes is not None
    assert (study.probes.pool, study.media_probes.pool) == ("all", "modality")
    assert cli.main(["compare", "--studies", str(folder), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["pooling"]["mine"]["pairs"]) == 12
    assert (shown["encoders"], shown["published"]) == ([], None)
    (folder / "probes.json").unlink()
    assert load_study(folder).media_probes is None
    assert cli.main(["compare", "--studies", str(folder)]) == 1
    assert "nothing here can be compared" in capsys.readouterr().err
    save_result(made.probes(pool="modality"), folder / "again.json")
    with pytest.raises(ValueError, match="two results of the kind media_probes"):
        load_study(folder)
