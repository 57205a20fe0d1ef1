"""Models spread by device_map: capture takes every tensor from where it is."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import Capturer, ExtractConfig, extract, extract_moments
from modegap.engine.datasets import ListDataset
from modegap.engine.models import LoadedModel, load

pytest.importorskip("accelerate")
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def saved(family: str, folder: Path) -> Path:
    loaded = tiny.FAMILIES[family][0]()
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
    return folder


def offloaded(folder: Path, whole: LoadedModel) -> LoadedModel:
    """Every second decoder layer on the disk: its weights are on `meta` between forwards."""
    layers = whole.structure.layers
    top = {name for name, _ in whole.model.named_parameters()}
    places: dict[str, str] = {}
    for name in sorted(top):
        if name.startswith(f"{layers}."):
            number = int(name.removeprefix(f"{layers}.").split(".")[0])
            places[f"{layers}.{number}"] = "disk" if number % 2 else "cpu"
        else:
            places[name.rpartition(".")[0]] = "cpu"
    head = whole.model.get_output_embeddings()
    places.update({path: "cpu" for path, module in whole.model.named_modules() if module is head})
    return load(folder, device_map=places, offload_folder=str(folder / "offload"))


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_offloaded_layers_give_the_same_rows(family: str, tmp_path: Path) -> None:
    whole = load(saved(family, tmp_path / "m"))
    spread = offloaded(tmp_path / "m", whole)
    assert any(weight.device.type == "meta" for weight in spread.model.parameters())
    assert spread.device.type == "cpu"
    data = ListDataset(tiny.FAMILIES[family][1](7))
    points = ("llm_*",) if family == "llama" else ("adapter_output", "llm_*")
    made = ExtractConfig("given", "given", str(tmp_path / "a"), points, batch_size=3)
    expected = extract(made, model=whole, data=data)
    found = extract(
        ExtractConfig("given", "given", str(tmp_path / "b"), points, batch_size=3), model=spread, data=data
    )
    for point in expected.points:
        for kind in ("tokens", "pooled"):
            ours, theirs = found.rows(point, kind), expected.rows(point, kind)
            np.testing.assert_array_equal(ours.read(0, ours.shape[0]), theirs.read(0, theirs.shape[0]))
    stats = ExtractConfig("given", "given", str(tmp_path / "c"), points, batch_size=3, rows="stats-only")
    moments = extract_moments(stats, model=spread, data=data)
    assert moments.count(points[0] if family == "llava" else "llm_final", "pooled") == 7


@pytest.mark.gpu
def test_points_on_several_gpus(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    whole = load(saved("llama", tmp_path / "m"))
    layers = whole.structure.layers
    places: dict[str, int] = {"model.embed_tokens": 0, "model.norm": 1, "model.rotary_emb": 0, "lm_head": 1}
    places |= {f"{layers}.{k}": k % 2 for k in range(3)}
    spread = load(tmp_path / "m", device_map=places)
    data = ListDataset(tiny.text_samples(9))
    with Capturer(spread, spread.select(["llm_hidden_1", "llm_hidden_2"])) as capturer:
        blocks = capturer(spread.collate([data[8]]))
    assert {block.x.device.index for block in blocks.values()} == {0, 1}
    for rows in ("both", "stats-only"):
        given = ExtractConfig(
            "given", "given", str(tmp_path / f"a-{rows}"), ("llm_*",), rows=rows, batch_size=3
        )
        if rows == "both":
            expected = extract(given, model=whole, data=data)
            made = ExtractConfig("given", "given", str(tmp_path / "b"), ("llm_*",), rows=rows, batch_size=3)
            found = extract(made, model=spread, data=data)
            for point in expected.points:
                ours, theirs = found.rows(point), expected.rows(point)
                np.testing.assert_allclose(
                    ours.read(0, ours.shape[0]).astype(np.float32),
                    theirs.read(0, theirs.shape[0]).astype(np.float32),
                    rtol=5e-3,
                    atol=5e-3,
                )
        else:
            moments = extract_moments(given, model=spread, data=data)
            assert moments.count("llm_hidden_1", "tokens") == sum(len(s.text.split()) + 1 for s in data)
