"""The paper's systems are trained, captured and asked from their stores."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import ExtractConfig, extract, extract_replayed
from modegap.engine.datasets import ListDataset
from modegap.engine.lora import LoraSpec, TrainConfig, adapted, fresh, train
from modegap.engine.models import LoadedModel, load
from modegap.engine.replay import Replay, greedy, open_source

pub = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
MEDIA = [name for name, kind in pub.KINDS.items() if kind != "text"]


@pytest.fixture(scope="module", params=MEDIA)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    cache = tmp_path_factory.mktemp("hub")
    pub.WRITERS[request.param](pub.Hub(cache))
    return load(request.param, dtype="float32", cache_dir=str(cache))


def test_a_system_is_trained_from_its_store(loaded: LoadedModel, tmp_path: Path) -> None:
    samples = pub.samples(loaded.modality, 8)
    points = ("adapter_output", "llm_hidden_1", "llm_final")
    config = ExtractConfig("m", "d", str(tmp_path / "s.zarr"), points, batch_size=4, store_dtype="float32")
    store = extract(config, model=loaded, data=ListDataset(samples))
    again = extract_replayed(
        loaded, open_source(loaded, store, target="paper"), tmp_path / "r.zarr", points, dtype="float32"
    )
    for point in points:
        one, other = (opened.rows(point, "pooled").read(0, 8) for opened in (store, again))
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4, err_msg=point)
    source = open_source(loaded, store)
    before = Replay(loaded, source).losses()[0]
    encoder = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    with fresh(loaded, LoraSpec(rank=2), seed=0) as adapter:
        training = TrainConfig(epochs=2, lr=1e-2, effective_batch=3, batch_size=2)
        found = train(loaded, adapter, source, range(6), [6, 7], training, checkpoint=tmp_path / "c.st")
        after = Replay(loaded, source).losses()[0]
        adapter.save(tmp_path / "adapter")
    assert found.steps == 4
    assert after[:6].mean() < before[:6].mean()
    assert all(torch.equal(weight, encoder[name]) for name, weight in loaded.model.named_parameters())
    np.testing.assert_array_equal(Replay(loaded, source).losses()[0], before)
    with adapted(loaded, tmp_path / "adapter"):
        np.testing.assert_array_equal(Replay(loaded, source).losses()[0], after)
        assert len(greedy(Replay(loaded, source), max_new_tokens=3)) == 8
