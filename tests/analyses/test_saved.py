"""Saved results come back as they were."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modegap.analyses.ablate import AblateConfig, AblationResult, Condition, Draw
from modegap.analyses.ablate.statistics import Paired
from modegap.analyses.ablate.subsets import Subset
from modegap.analyses.probe import Cell, ProbeConfig, ProbeResult
from modegap.analyses.probe.fit import Scores
from modegap.analyses.saved import load_result, save_result
from modegap.engine.certificate import Certificate

CERTIFICATE = Certificate("precise", {"covariance": {"name": "syrk", "why": "the CPU"}}, 100, 8, rank=5)


def probes() -> ProbeResult:
    scores = (Scores(42, 0.5, 0.4, True, 80, 20), Scores(43, 0.75, 0.7, False, 80, 20))
    cells = (
        Cell("adapter_output", "digit", 100, 10, 0.2, scores, notes=("a note",)),
        Cell("adapter_output", "one", message="only one class"),
    )
    return ProbeResult(ProbeConfig(group="scan"), ("adapter_output",), ("digit", "one"), cells, CERTIFICATE)


def ablation() -> AblationResult:
    change = Paired(-0.1, -5.0, -7.0, -3.0, None, None, 3)
    draw = Draw(Subset("ms", (0, 2)), 0.5, 0.4, np.array([1.0, 2.0, np.nan]), change)
    fields: dict[str, Any] = {
        "config": AblateConfig(n_samples=3),
        "model": "lab:plain",
        "point": "adapter_output",
        "ids": ("a", "b", "c"),
        "baseline": np.array([1.5, 2.5, 3.5]),
        "conditions": (Condition("ms", (draw,), change),),
        "certificate": CERTIFICATE,
    }
    extra = {
        f.name: ()
        for f in dataclasses.fields(AblationResult)
        if f.name not in fields and f.default is dataclasses.MISSING
    }
    return AblationResult(**fields, **extra)


@pytest.mark.parametrize("make", [probes, ablation])
def test_round_trip(make: Any, tmp_path: Path) -> None:
    before = make()
    after = load_result(save_result(before, tmp_path / "new" / "r.json"))
    assert type(after) is type(before)
    assert after.to_json() == before.to_json()
    assert after.table() == before.table()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.json"]


def test_numbers_and_types_survive(tmp_path: Path) -> None:
    after = load_result(save_result(ablation(), tmp_path / "r.json"))
    assert isinstance(after, AblationResult)
    draw = after.conditions[0].draws[0]
    np.testing.assert_array_equal(draw.loss, [1.0, 2.0, np.nan])
    assert draw.subset == Subset("ms", (0, 2))
    assert after.certificate == CERTIFICATE


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"format": "other/1"}', '{"format": "modegap.result/1", "kind": "x"}']
)
def test_other_files_are_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"r\.json"):
        load_result(path)


def test_a_field_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = save_result(probes(), tmp_path / "r.json")
    content = json.loads(path.read_text())
    del content["result"]["cells"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"r\.json"):
        load_result(path)
