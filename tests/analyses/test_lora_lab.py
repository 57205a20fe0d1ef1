"""On the lab, an attribute that no caption names goes from chance to well above it (minutes)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import modegap as mg
from modegap.engine.capture import ExtractConfig
from modegap.engine.lora.threads import threads_for

YAML = Path(__file__).parents[2] / "docs" / "lora-lab.yaml"


@pytest.mark.slow
def test_the_background_becomes_accessible(tmp_path: Path) -> None:
    model = mg.load("lab:plain")
    points = ("adapter_output", "llm_hidden_3", "llm_final")
    config = ExtractConfig("lab:plain", "lab:train", str(tmp_path / "s.zarr"), points)
    store = mg.extract(config, model=model, data=mg.dataset("lab", split="train"))
    found = mg.lora(model, store, "background", tmp_path / "out", **yaml.safe_load(YAML.read_text()))
    base, label, control = (arm.ask("background") for arm in found.arms)
    assert base.accuracy.low < base.chance < base.accuracy.high
    assert label.accuracy.low > 0.45
    assert control.accuracy.high < 0.4
    assert label.access.gmi.value > 0.3
    moved = {
        (x.label, x.point): x.moved
        for x in found.changes()
        if x.arm == "label" and x.quantity == "probe accuracy"
    }
    assert moved["background", "llm_final"]
    others = [changed for (label_of, _), changed in moved.items() if label_of != "background"]
    assert sum(bool(changed) for changed in others) <= len(others) // 4


def test_a_narrow_decoder_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mg.load("lab:plain")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(model):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("modegap.engine.lora.threads._NARROW", 64)
        with threads_for(model):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
