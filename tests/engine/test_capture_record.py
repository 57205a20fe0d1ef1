"""`record`: the user's own loop."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import ExtractConfig, extract, record
from modegap.engine.datasets import ListDataset, batches
from modegap.engine.errors import EngineError
from modegap.stores import verify

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


@pytest.mark.parametrize("family", ["llava", "audio", "llama"])
@pytest.mark.parametrize("rows", ["both", "tokens", "pooled"])
def test_record_stores_what_extract_stores(family: str, rows: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded, data = make(), ListDataset(samples(8))
    config = ExtractConfig("m", "d", str(tmp_path / "e"), ("*",), rows=rows, batch_size=3)
    expected = extract(config, model=loaded, data=data)
    with record(loaded, ["*"], tmp_path / "r", rows) as rec:
        for batch in batches(data, loaded.processor, 3):
            rec(batch)
        assert rec.store is None
    store = rec.store
    assert store.samples == expected.samples
    assert {name: c.values for name, c in store.labels.items()} == {
        n: c.values for n, c in expected.labels.items()
    }
    assert verify(store).ok
    for point in expected.points:
        for kind in ("tokens", "pooled") if rows == "both" else (rows,):
            ours, theirs = store.rows(point, kind), expected.rows(point, kind)
            assert ours.shape == theirs.shape
            stop = ours.shape[0]
            np.testing.assert_allclose(
                ours.read(0, stop).astype(np.float32),
                theirs.read(0, stop).astype(np.float32),
                rtol=2e-3,
                atol=1e-3,
            )
            if kind == "tokens":
                np.testing.assert_array_equal(ours.modality(0, stop), theirs.modality(0, stop))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "r"], "temporary files must go"


def test_record_takes_samples_and_plain_tensors(tmp_path: Path) -> None:
    loaded = tiny.llava()
    samples = tiny.image_samples(4)
    tensors = loaded.processor(
        text=["<image> cat"] * 2, images=[s.media for s in samples[2:]], padding=True, return_tensors="pt"
    )
    with record(loaded, ["adapter_output"], tmp_path / "a") as rec:
        rec(samples[:2])
        labels = {name: [s.labels[name] for s in samples[2:]] for name in samples[0].labels}
        rec(tensors, ids=["p", "q"], labels={**labels, "text": ["x", "y"]})
    assert rec.store.samples == ["image-0", "image-1", "p", "q"]
    assert rec.store.labels["text"].values[2:] == ("x", "y")
    with record(loaded, ["llm_final"], tmp_path / "b", "pooled") as rec:
        rec(tensors, labels={})
    assert rec.store.samples == ["0", "1"]
    assert rec.store.labels == {}


def test_record_is_all_or_nothing(tmp_path: Path) -> None:
    loaded = tiny.llava()
    samples = tiny.image_samples(4)
    loaded.model(
        **loaded.collate(samples[:1]).tensors
    )  # transformers installs hooks of its own in the first forward
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())

    def run(*batches: object) -> None:
        with record(loaded, ["adapter_output"], tmp_path / "s") as rec:
            for batch in batches:
                if batch == "fail":
                    raise RuntimeError("mine")
                rec(batch)

    with pytest.raises(RuntimeError, match="mine"):
        run(samples, "fail")
    with pytest.raises(EngineError, match="sample 'image-0' was recorded before"):
        run(samples[:2], samples[:1])
    with pytest.raises(EngineError, match="nothing was recorded"):
        run()
    with pytest.raises(EngineError, match="earlier batches had"):
        run(samples[:2], [tiny.Sample("new", "a", samples[0].media, labels={"other": 1})])
    assert list(tmp_path.iterdir()) == []
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.modules())
    assert after == before


def test_record_refuses(tmp_path: Path) -> None:
    loaded = tiny.llava()
    (tmp_path / "there").mkdir()
    with pytest.raises(EngineError, match="exists"), record(loaded, ["adapter_output"], tmp_path / "there"):
        pass
    with (
        pytest.raises(EngineError, match=r"adopt\(model, processor\)"),
        record(loaded.model, ["x"], tmp_path / "s"),
    ):
        pass
    with pytest.raises(EngineError, match="no hook point 'x'"), record(loaded, ["x"], tmp_path / "s"):
        pass
    with record(loaded, ["adapter_output"], tmp_path / "s") as rec:
        rec(tiny.image_samples(1))
        with pytest.raises(EngineError, match="record takes samples"):
            rec(torch.zeros(2))
        with pytest.raises(EngineError, match="has 1 values for 2 samples"):
            rec(tiny.image_samples(3)[1:], labels={"kind": ["a"]})
    assert rec.store.samples == ["image-0"]
