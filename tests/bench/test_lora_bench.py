"""The LoRA benchmark's gate: ours and the published recipe have the same gradient, and a wrong one is caught."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import lab_lora, lora
from bench.llava import SMALL
from bench.replay import material
from modegap.engine.lora import TrainConfig

EXACT = TrainConfig(precision="float32")


@pytest.fixture(scope="module")
def made() -> Any:
    return material(SMALL, "cpu", torch.float32, lora.BATCH)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_gradients_are_the_recipes(made: Any, checkpointing: bool) -> None:
    config = dataclasses.replace(EXACT, checkpointing=checkpointing, batch_size=3)
    found = lora.check(made, config, tight=True)
    assert found["gradient"] < lora.SMALL_TOLERANCE
    assert found["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_the_gate_closes(made: Any) -> None:
    wrong = dataclasses.replace(made, stored=made.stored * 1.05)
    with pytest.raises(SystemExit, match="nothing was timed"):
        lora.check(wrong, EXACT, tight=True)
    with pytest.raises(SystemExit, match="nothing was timed"):
        lora.check(dataclasses.replace(made, stored=-made.stored), EXACT, tight=False)


def test_it_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.lora", "--small", "--out", str(tmp_path)])
    assert lora.main() == 0
    body = json.loads((tmp_path / "lora.json").read_text())
    assert [(e["provider"], e["batch"], e["checkpointing"]) for e in body["results"]] == [
        ("recipe", 1, True),
        ("modegap", 1, True),
        ("modegap", 8, True),
        ("recipe", 1, False),
        ("modegap", 1, False),
        ("modegap", 8, False),
    ]
    assert all(entry["samples_per_s"] > 0 for entry in body["results"])
    assert len(body["summary"]) == 2


def test_ratios_are_against_the_recipe_as_published() -> None:
    def entry(provider: str, rate: float, checkpointing: bool) -> dict[str, Any]:
        keys = {"batch": 4, "peak_gib": 1.0, "checkpointing": checkpointing}
        return {"provider": provider, "samples_per_s": rate, **keys}

    found = [entry("recipe", 5.0, True), entry("recipe", 6.0, False)]
    found += [entry("modegap", rate, on) for on in (True, False) for rate in (9.0, 10.0 + on)]
    first, second = lora.ratios(found)
    assert "2.20x" in first
    assert "2.00x" in second


def test_the_lab_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["bench.lab_lora", "--out", str(tmp_path), "--epochs", "1", "--limit", "120"]
    monkeypatch.setattr(sys, "argv", args)
    assert lab_lora.main() == 0
    body = json.loads((tmp_path / "run.json").read_text())
    assert body["samples"] == {"train": 84, "validation": 12, "test": 24}
    assert 0 < sum(body["training_seconds"].values()) < body["seconds"]
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [
        "base",
        "LoRA: background",
        "LoRA: texts (control)",
    ]
