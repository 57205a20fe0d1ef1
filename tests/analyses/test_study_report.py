"""Studies as a report: models side by side, each by itself, and what one study alone shows."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modegap.analyses.compare import PoolingResult
from modegap.analyses.probe import ProbeResult
from modegap.analyses.report import Item, Section
from modegap.analyses.report.charts import specification
from modegap.analyses.study import Study, study_report
from modegap.analyses.study.overview import degradation_rows
from modegap.analyses.study.topics import stacked
from modegap.analyses.table import Column, Table

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("result_examples.py"))))


def section(report: Any, anchor: str) -> Section:
    found = [part for one in report.sections for part in (one, *one.parts) if part.anchor == anchor]
    assert len(found) == 1, anchor
    return found[0]


def names(one: Section) -> list[str]:
    return [item.name for item in one.items]


def test_nine_studies_stand_side_by_side_and_one_by_one() -> None:
    studies = made.studies()
    report = study_report(studies)
    anchors = [one.anchor for one in report.sections]
    topics = ["modes", "probes", "ablation", "sensitivity", "swap", "gmi", "lora"]
    topics += ["bounds", "distances", "types"]
    assert anchors[:3] == ["overview", "published", "encoders"]
    assert anchors[3:13] == topics
    assert anchors[13:] == [f"model-{study.name.replace(' ', '-')}" for study in studies]
    speech = section(report, "model-ultravox-on-cremad")
    assert [part.anchor.removeprefix("model-ultravox-on-cremad-") for part in speech.parts] == topics
    vision = section(report, "model-llava-on-coco")
    assert [part.anchor.removeprefix("model-llava-on-coco-") for part in vision.parts] == [
        topic for topic in topics if topic not in ("swap", "lora")
    ]
    assert report.headlines == ()
    assert "considered modes" in vision.prose
    assert names(section(report, "probes")) == ["probe-overview", "probe-curves", "retention"]
    assert names(section(report, "overview")) == ["glance", "degradation"]
    (trained,) = section(report, "lora").items
    assert {row[0] for row in trained.content.rows} == {
        f"{name} on cremad, emotion" for name in ("ultravox", "qwen2audio")
    }
    (swaps,) = section(report, "swap").items
    assert {row[0] for row in swaps.content.rows} == {study.name for study in studies if study.swap}


def test_one_study_shows_all_it_has_by_topic() -> None:
    report = study_report(made.studies()[:1])
    anchors = [one.anchor for one in report.sections]
    assert anchors[0] == "published"
    assert "overview" not in anchors
    assert not any(anchor.startswith("model-") for anchor in anchors)
    kinds = {type(item.content) for item in section(report, "probes").items}
    assert {ProbeResult, PoolingResult, Table} <= kinds
    assert len(report.headlines) == 2


def test_two_studies_of_a_similar_name_have_links_of_their_own() -> None:
    study = made.studies()[0]
    report = study_report([replace(study, name="a b"), replace(study, name="a-b")])
    assert [one.anchor for one in report.sections[-2:]] == ["model-a-b-1", "model-a-b-2"]


def test_media_probes_with_other_options_are_shown_by_themselves() -> None:
    study = made.studies()[0]
    media = replace(study.media_probes, config=replace(study.media_probes.config, C=2.0))
    items = section(study_report([replace(study, media_probes=media)]), "probes").items
    assert [type(item.content) for item in items].count(ProbeResult) == 2
    assert PoolingResult not in {type(item.content) for item in items}


def test_a_hole_is_named() -> None:
    probes = section(study_report(made.studies()[:1]), "probes").items[0].content
    assert isinstance(probes, ProbeResult)
    notes = probes.table().notes
    assert any("constant: only the class 'x'" in note for note in notes)
    assert [row[2] for row in probes.table().rows if row[0] == "constant"] == [None] * 4


def test_stacked_tables_keep_equally_named_columns_apart() -> None:
    first = Table("a", ["x", Column("low"), Column("low", "%"), Column("low", "%")], [(1, 2, 3, 4)])
    other = Table("b", ["x", Column("low", "%"), "y"], [(5, 6, 7)])
    found = stacked("both", [("one", first), ("two", other)])
    assert [c.title for c in found.headers] == ["model", "x", "low", "low [%]", "low [%]", "y"]
    assert found.rows == (("one", 1, 2, 3, 4, None), ("two", 5, None, 6, None, 7))


def test_degradation_against_the_product() -> None:
    study = made.studies()[0]
    rows = degradation_rows(study)
    assert [row["label"] for row in rows] == ["speaker", "lexical"]  # the constant label has no accuracy
    norms, w1 = study.lipschitz.overall, study.distances.pair("adapter_output").w1
    for row in rows:
        assert row["point"] == "adapter_output"
        assert row["lw1"] == pytest.approx(norms.mean * w1.value)
        ends = [study.probes.cell(point, row["label"]) for point in ("adapter_output", "llm_final")]
        above = [(cell.accuracy - cell.chance) / (1 - cell.chance) for cell in ends]
        assert row["lost"] == pytest.approx(above[0] - above[1])
    assert rows[0]["mean"] == pytest.approx((rows[0]["lost"] + rows[1]["lost"]) / 2)
    assert degradation_rows(replace(study, distances=None)) == []
    assert degradation_rows(Study("empty")) == []


def test_more_series_than_colours_differ_in_shape() -> None:
    items: list[Item] = list(section(study_report(made.studies()), "overview").items)
    spec = specification(items[1].content)
    encoding = spec["layer"][1]["encoding"]
    pairs = list(zip(encoding["color"]["scale"]["range"], encoding["shape"]["scale"]["range"], strict=True))
    assert len(pairs) == len(set(pairs)) == 9
