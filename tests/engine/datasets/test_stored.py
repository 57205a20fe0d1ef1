"""The texts of a store as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from modegap.engine.datasets import dataset
from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, PointPlan, StoreError, StorePlan, provenance


def make(path: Path, labels: Mapping[str, Sequence]) -> str:
    told = provenance(model="m", revision=None, dtype="float32", prompt="", dataset="coco:val2017", config={})
    plan = StorePlan({"llm_final": PointPlan(4, "pooled")}, ["b", "a", "c"], labels, told)
    ActivationStore.create(path, plan)
    return f"store:{path}"


def test_the_texts_of_a_store(tmp_path: Path) -> None:
    spec = make(
        tmp_path / "s.zarr",
        {"text": ["a dog", None, "two cats and a mat"], "kind": ["x", "x", "y"], "n": [1, 2, None]},
    )
    data = dataset(spec)
    assert (data.name, data.modality, list(data.ids)) == ("coco:val2017", "text", ["b", "a", "c"])
    assert [(s.text, s.media) for s in data] == [("a dog", None), ("", None), ("two cats and a mat", None)]
    assert data.labels() == {"kind": ["x", "x", "y"], "n": [1, 2, None]}
    assert list(dataset(spec, skip_bad=True).ids) == ["b", "c"]
    assert [s.text for s in dataset(spec, text="kind", labels=["n"])] == ["x", "x", "y"]


def test_the_texts_of_an_imported_store(tmp_path: Path) -> None:
    data = dataset(make(tmp_path / "s.zarr", {"caption": ["p", "q", "r"], "speaker": ["1", "1", "2"]}))
    assert [s.text for s in data] == ["p", "q", "r"]


def test_stores_without_texts(tmp_path: Path) -> None:
    spec = make(tmp_path / "s.zarr", {"n": [1, 2, 3], "kind": ["x", "x", "y"]})
    for text, message in (
        (None, r"none of the labels text, transcript, caption, question .it has .*n \(number\)"),
        ("words", r"no label 'words'"),
        ("n", "'n' of store .* holds numbers"),
    ):
        with pytest.raises(EngineError, match=message) as caught:
            dataset(spec, text=text)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError):
        dataset(f"store:{tmp_path / 'other.zarr'}")
    with pytest.raises(
        EngineError, match="the texts of a store takes no option 'root'; it takes text, labels"
    ):
        dataset(spec, root=tmp_path)
