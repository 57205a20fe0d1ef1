"""The paper's systems replayed from their stores: the loss of the whole model, encoder and all."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset, as_text
from modegap.engine.models import LoadedModel, load, target_nll
from modegap.engine.replay import Replay, open_source

pub = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
MEDIA = [name for name, kind in pub.KINDS.items() if kind != "text"]


@pytest.fixture(scope="module", params=MEDIA)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    cache = tmp_path_factory.mktemp("hub")
    pub.WRITERS[request.param](pub.Hub(cache))
    return load(request.param, dtype="float32", cache_dir=str(cache))


@pytest.mark.parametrize("points", [("adapter_output",), ("adapter_output", "llm_hidden_0")])
def test_a_system_replays_its_store(loaded: LoadedModel, points: Any, tmp_path: Path) -> None:
    samples = pub.samples(loaded.modality, 5)
    config = ExtractConfig(
        "m", "d", str(tmp_path / "s.zarr"), points, batch_size=3, store_dtype="float32", rows="tokens"
    )
    store = extract(config, model=loaded, data=ListDataset(samples))
    found = Replay(loaded, open_source(loaded, store), batch_size=3).losses()[0]
    np.testing.assert_allclose(found, target_nll(loaded, samples, batch_size=1), rtol=5e-5)


def test_the_text_law_of_a_system(loaded: LoadedModel, tmp_path: Path) -> None:
    data = as_text(ListDataset(pub.samples(loaded.modality, 3)))
    config = ExtractConfig("m", "d", str(tmp_path / "t.zarr"), ("text_embedding",), rows="tokens")
    store = extract(config, model=loaded, data=data)
    source = open_source(loaded, store)
    assert np.isfinite(Replay(loaded, source).losses()).all()
    assert [len(item.slot) for item in source.items] == [
        len(t) for t in loaded.collator.collate(list(data)).texts
    ]
