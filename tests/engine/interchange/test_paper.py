"""The HDF5 files of the published scripts: made as they make them, read as they read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_material import N, full_store, values

from modegap.engine.errors import EngineError
from modegap.engine.interchange import export_store, import_store
from modegap.stores import ActivationStore

h5py = pytest.importorskip("h5py")

POINTS = {"encoder_output": 5, "adapter_output": 4, "llm_hidden_16": 4, "llm_final": 4}


def extract(
    path: Path, planned: int, done: int, labels: dict[str, list[str | None]], **more: Any
) -> dict[str, Any]:
    """A file as their extraction leaves it: allocated for `planned` samples, `done` of them appended."""
    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((done, width)).astype(np.float32) for name, width in POINTS.items()}
    with h5py.File(path, "w") as file:
        for name, width in POINTS.items():
            file.create_dataset(name, (planned, width), "float32", chunks=(min(256, planned), width))
        attributes = {
            "model_name": "ultravox",
            "hf_path": "fixie-ai/ultravox-v0_6-llama-3_1-8b",
            "dataset_name": "cremad",
            "hook_points": {name: f"model.{name}" for name in POINTS},
            "hook_names": list(POINTS),
            "hidden_dims": POINTS,
            "n_samples": planned,
            "pool_strategy": "mean",
            "config": {"datasets": {"speech": {}}},
            **more,
        }
        for key, value in attributes.items():
            file.attrs[key] = json.dumps(value) if isinstance(value, dict | list) else value
        strings = h5py.special_dtype(vlen=str)
        file.create_dataset("sample_ids", (planned,), dtype=strings)
        for field in labels:
            file.create_dataset(field, (planned,), dtype=strings)
        file.attrs["label_fields"] = json.dumps(list(labels))
    for k in range(done):
        with h5py.File(path, "a") as file:
            for name in POINTS:
                file[name][k : k + 1] = rows[name][k]
            file["sample_ids"][k] = f"clip-{k:03d}"
            for field, column in labels.items():
                file[field][k] = column[k] or ""
    if done < planned:
        with h5py.File(path, "a") as file:
            file.attrs["n_samples_actual"] = done
    return rows


LABELS: dict[str, list[str | None]] = {
    "speaker_id": [f"s{k % 4}" for k in range(12)],
    "emotion": ["happy" if k % 3 else None for k in range(12)],
    "transcript": [f"it's é {k} o'clock" for k in range(12)],
}


@pytest.mark.parametrize("planned", [12, 300])
def test_their_file_becomes_a_store(tmp_path: Path, planned: int) -> None:
    rows = extract(tmp_path / "ultravox_cremad.h5", planned, 12, LABELS)
    store = import_store(tmp_path / "ultravox_cremad.h5", tmp_path / "s.zarr", dtype="float32")
    assert store.samples == [f"clip-{k:03d}" for k in range(12)]
    assert set(store.points) == set(POINTS)
    for name in POINTS:
        np.testing.assert_array_equal(values(store, name, "pooled"), rows[name])
    assert {name: list(column.values) for name, column in store.labels.items()} == LABELS
    assert store.labels["speaker_id"].kind == "category"
    assert store.labels["transcript"].kind == "text"
    found = store.provenance
    assert (found["model"], found["dataset"]) == ("fixie-ai/ultravox-v0_6-llama-3_1-8b", "cremad")
    assert found["hook_points"]["llm_final"] == "model.llm_final"
    assert found["config"] == {"datasets": {"speech": {}}}
    assert "n_samples" not in found


def test_what_is_no_hook_point_is_left_out(tmp_path: Path) -> None:
    extract(tmp_path / "a.h5", 12, 12, LABELS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("audio_waveforms", (12,), dtype=h5py.vlen_dtype(np.float32))
        file.create_dataset("mel", (12, 3), "float32")
        file.create_group("more")
    assert set(import_store(tmp_path / "a.h5", tmp_path / "a.zarr").points) == set(POINTS)
    only = import_store(tmp_path / "a.h5", tmp_path / "b.zarr", points=["mel", "llm_final"], samples=7)
    assert (set(only.points), len(only.samples)) == ({"mel", "llm_final"}, 7)


def test_a_text_baseline(tmp_path: Path) -> None:
    extract(tmp_path / "llama.h5", 12, 12, {"text": [f"words {k}" for k in range(12)]}, source_file="/x.h5")
    store = import_store(tmp_path / "llama.h5", tmp_path / "s.zarr")
    assert store.labels["text"].values[3] == "words 3"
    assert store.provenance["source_file"] == "/x.h5"


def test_ids_that_are_not_unique(tmp_path: Path) -> None:
    extract(tmp_path / "a.h5", 12, 12, LABELS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["sample_ids"][3] = "clip-002"
    with pytest.raises(EngineError, match="--ids numbers"):
        import_store(tmp_path / "a.h5", tmp_path / "s.zarr")
    assert import_store(tmp_path / "a.h5", tmp_path / "s.zarr", ids="numbers").samples[3] == "3"


def load_representations(path: Path, hook: str) -> np.ndarray:
    with h5py.File(path) as file:
        found: np.ndarray = file[hook][:]
    return found


def load_strings(path: Path, name: str) -> list[str]:
    with h5py.File(path) as file:
        raw = file[name][:]
    return [x.decode("utf-8") if isinstance(x, bytes) else str(x) for x in raw]


def test_a_store_becomes_their_file(tmp_path: Path) -> None:
    """Read with the few lines that their scripts use, which take every dataset they do not know for a hook."""
    store = full_store(tmp_path / "s.zarr")
    out = export_store(store, tmp_path / "tiny.h5")
    known = {"sample_ids", "text", "transcript", "emotion", "speaker_id", "sound_class"}
    with h5py.File(out) as file:
        assert {key for key in file if key not in known} == {
            "adapter_output",
            "llm_hidden_1",
            "encoder_output",
        }
        attributes = dict(file.attrs)
        assert file["encoder_output"].chunks == (N, 3)
    assert int(attributes["n_samples"]) == N
    assert (attributes["model_name"], attributes["dataset_name"]) == ("tiny", "made up")
    assert json.loads(attributes["label_fields"]) == ["emotion", "transcript"]
    assert json.loads(attributes["hidden_dims"])["encoder_output"] == 3
    for name in ("adapter_output", "llm_hidden_1", "encoder_output"):
        found = load_representations(out, name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values(store, name, "pooled"))
    assert load_strings(out, "sample_ids") == store.samples
    assert load_strings(out, "emotion") == list(store.labels["emotion"].values)
    assert load_strings(out, "transcript")[4] == ""
    back = import_store(out, tmp_path / "back.zarr", dtype="float32")
    assert back.labels == store.labels
    (tmp_path / "tiny.h5.json").unlink()
    alone = import_store(out, tmp_path / "alone.zarr", dtype="float32")
    assert alone.samples == store.samples
    assert set(alone.labels) == {"emotion", "transcript"}
    assert alone.labels["transcript"].values == store.labels["transcript"].values


def test_there_and_back_again(tmp_path: Path) -> None:
    """Their file, a store, their file: the same rows, ids, labels and attributes."""
    extract(tmp_path / "a.h5", 12, 12, LABELS)
    store: ActivationStore = import_store(tmp_path / "a.h5", tmp_path / "s.zarr", dtype="float32")
    out = export_store(store, tmp_path / "b.h5")
    with h5py.File(tmp_path / "a.h5") as first, h5py.File(out) as second:
        assert set(first) == set(second)
        for name in first:
            assert first[name].dtype == second[name].dtype
            np.testing.assert_array_equal(first[name][:], second[name][:])
            if name in POINTS:
                assert first[name].chunks == second[name].chunks
        for key in ("model_name", "hf_path", "dataset_name", "n_samples"):
            assert first.attrs[key] == second.attrs[key], key
        for key in ("hook_points", "hidden_dims", "config"):
            assert json.loads(first.attrs[key]) == json.loads(second.attrs[key]), key
        fields = (json.loads(file.attrs["label_fields"]) for file in (first, second))
        assert sorted(next(fields)) == sorted(next(fields))


def test_a_file_with_nothing_filled(tmp_path: Path) -> None:
    extract(tmp_path / "x.h5", 5, 0, {})
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file.attrs["n_samples_actual"] = 0
    with pytest.raises(EngineError, match="none of its samples were filled"):
        import_store(tmp_path / "x.h5", tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()
    assert import_store(tmp_path / "x.h5", tmp_path / "y.zarr", samples=2, ids="numbers").n_complete == 2


def test_attributes_and_entries_that_say_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["llm_final"] = np.ones((3, 2), np.float32)
        file["none"] = h5py.Empty("f4")
        file["gone"] = h5py.SoftLink("/nowhere")
        file["elsewhere"] = h5py.ExternalLink("none.h5", "/x")
        file.attrs["loss"] = float("nan")
        file.attrs["losses"] = np.array([1.0, np.inf])
        file.attrs["empty"] = h5py.Empty("f4")
    store = import_store(tmp_path / "x.h5", tmp_path / "x.zarr")
    assert list(store.points) == ["llm_final"]
    assert (store.provenance["loss"], store.provenance["losses"]) == ("nan", "[1.0, inf]")
