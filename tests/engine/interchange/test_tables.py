"""Hugging Face `datasets`: a store seen as one, written as one, and made from one."""

from __future__ import annotations

import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_material import LENGTHS, N, full_store, values

from modegap.cli import main
from modegap.engine.errors import EngineError
from modegap.engine.interchange import as_dataset, export_store, import_dataset, import_store
from modegap.stores import ActivationStore, DamagedChunkError, PointPlan, SampleRows, StorePlan

hub = pytest.importorskip("datasets", reason="needs datasets")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return full_store(tmp_path_factory.mktemp("full") / "s.zarr")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def true(store: ActivationStore, point: str, kind: str, index: int) -> np.ndarray:
    rows = store.rows(point, kind)  # type: ignore[arg-type]
    start, stop = rows.sample_range(index)
    return rows.read(start, stop, np.empty((stop - start, rows.shape[1]), np.float32))


def check_example(store: ActivationStore, example: dict[str, Any], index: int, kind: str) -> None:
    assert example["id"] == store.samples[index]
    for name, column in store.labels.items():
        assert example[name] == column.values[index]
    for name, info in store.points.items():
        if info.rows not in (kind, "both"):
            assert name not in example
            continue
        wanted = true(store, name, kind, index)
        found = np.asarray(example[name], np.float32).reshape(wanted.shape)
        np.testing.assert_array_equal(found, wanted)
        if kind == "tokens":
            start, stop = store.rows(name).sample_range(index)
            np.testing.assert_array_equal(example[f"{name}.ids"], store.rows(name).token_ids(start, stop))
            np.testing.assert_array_equal(example[f"{name}.modality"], store.rows(name).modality(start, stop))


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_a_view(store: ActivationStore, kind: Any) -> None:
    data = as_dataset(store, rows=kind)
    assert len(data) == N
    for index in (0, 7, N - 1):
        check_example(store, data[index], index, kind)
    some = data.shuffle(seed=1).select(range(5))
    for position, example in enumerate(some):
        check_example(store, example, int(some[position]["index"]), kind)
    batch = data[3:6]
    assert [len(column) for column in batch.values()] == [3] * len(batch)
    kept = data.filter(lambda example: example["emotion"] == "a", keep_in_memory=True)
    assert len(kept) == (N + 1) // 2
    norms = data.map(
        lambda example: {"norm": float(np.square(np.asarray(example["adapter_output"], np.float64)).sum())},
        remove_columns=data.column_names,
        keep_in_memory=True,
    )
    wanted = [np.square(true(store, "adapter_output", kind, k).astype(np.float64)).sum() for k in range(N)]
    np.testing.assert_allclose(norms["norm"][:], wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_a_stream(store: ActivationStore, kind: Any) -> None:
    data = as_dataset(store, rows=kind, streaming=True)
    assert data.features["adapter_output" if kind == "pooled" else "adapter_output.ids"] is not None
    examples = list(data)
    assert len(examples) == N
    for index, example in enumerate(examples):
        check_example(store, example, index, kind)
    first = next(iter(data.with_format("numpy").skip(5).take(1)))
    np.testing.assert_array_equal(first["id"], store.samples[5])


def test_workers_divide_a_stream(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    plan = StorePlan({"p": PointPlan(3, "pooled")}, [str(i) for i in range(600)])
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        for i in range(600):
            writer.put(i, {"p": SampleRows(pooled=np.full(3, i, np.float16))})
    data = as_dataset(store, streaming=True).with_format("torch")
    assert data.n_shards == 3
    batches = list(torch.utils.data.DataLoader(data, batch_size=50))
    assert torch.cat([batch["p"] for batch in batches])[:, 0].tolist() == list(range(600))
    parts = [[example["id"] for example in data.shard(num_shards=3, index=k)] for k in range(3)]
    assert sorted(int(i) for part in parts for i in part) == list(range(600))
    assert all(parts)


def test_no_row_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    """A view takes a hundredth of the memory of the rows; a stream a few chunks; a copy of the view opens anew."""
    plan = StorePlan({"p": PointPlan(1024, "pooled")}, [str(i) for i in range(4_000)])
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    row = np.arange(1024, dtype=np.float16)
    with store.writer() as writer:
        for i in range(4_000):
            writer.put(i, {"p": SampleRows(pooled=row + np.float16(i % 7))})
    total = 4_000 * 2048
    tracemalloc.start()
    view = as_dataset(store)
    streamed = as_dataset(store, streaming=True)
    made = tracemalloc.get_traced_memory()[1]
    seen = sum(float(example["p"][1]) for example in streamed.take(1500))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == sum(1 + i % 7 for i in range(1500))
    assert made < total / 4
    assert used < total / 3
    copy = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(copy[11]["p"], row + 4)


def test_only_complete_samples_and_only_sound_ones(tmp_path: Path) -> None:
    plan = StorePlan({"p": PointPlan(4, "pooled")}, [str(i) for i in range(9)], chunk_bytes=24)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        for i in range(7):
            writer.put(i, {"p": SampleRows(pooled=np.full(4, i, np.float16))})
    opened = ActivationStore.open(store.path)
    data = as_dataset(opened)
    assert data["id"][:] == [str(i) for i in range(6)]
    file = store.path / "pooled/p/rows/c/1/0"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    data[0]
    with pytest.raises(DamagedChunkError, match="rows 3 to 5"):
        data[4]
    with pytest.raises(DamagedChunkError):
        list(as_dataset(opened, streaming=True))


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_written_and_made_from_one(store: ActivationStore, tmp_path: Path, kind: Any) -> None:
    seen: list[tuple[int, int]] = []
    out = export_store(
        store, tmp_path / "out", format="datasets", rows=kind, progress=lambda *at: seen.append(at)
    )
    assert seen[-1] == (N, N)
    data = hub.load_from_disk(str(out))
    for index in range(N):
        check_example(store, data[index], index, kind)
    back = import_store(out, tmp_path / "back.zarr", dtype="float32")
    assert back.labels == store.labels
    assert back.samples == store.samples
    for name in back.points:
        np.testing.assert_array_equal(values(back, name, kind), values(store, name, kind))
        if kind == "tokens":
            rows, wanted = back.rows(name), store.rows(name)
            np.testing.assert_array_equal(rows.token_ids(0, 9), wanted.token_ids(0, 9))
            np.testing.assert_array_equal(rows.modality(0, 9), wanted.modality(0, 9))
            assert back.points[name].stream == store.points[name].stream
    (out / "modegap.json").unlink()
    alone = import_store(out, tmp_path / "alone.zarr", dtype="float32")
    assert alone.samples == store.samples
    assert {n: c.values for n, c in alone.labels.items()} == {n: c.values for n, c in store.labels.items()}


def test_any_data_set_becomes_a_store(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fixed, ragged = (
        rng.standard_normal((8, 5)),
        [rng.standard_normal((n, 3)) for n in (2, 0, 4, 1, 1, 3, 0, 2)],
    )
    boxes = rng.standard_normal((8, 4, 3)).astype(np.float32)
    data = hub.Dataset.from_dict(
        {
            "sample_id": list("abcdefgh"),
            "fixed": [list(row) for row in fixed],
            "ragged": [[list(row) for row in rows] for rows in ragged],
            "boxes": [box.tolist() for box in boxes],
            "emotion": [0, 1, 1, 0, 0, 1, 0, 1],
            "score": [0.5, None, 1, 2, 3, 4, 5, 6],
        },
        features=hub.Features(
            {
                "sample_id": hub.Value("string"),
                "fixed": hub.List(hub.Value("float64")),
                "ragged": hub.List(hub.List(hub.Value("float32"))),
                "boxes": hub.Array2D((4, 3), "float32"),
                "emotion": hub.ClassLabel(names=["calm", "angry"]),
                "score": hub.Value("float64"),
            }
        ),
    )
    store = import_dataset(data, tmp_path / "s.zarr", dtype="float32")
    assert store.samples == list("abcdefgh")
    assert store.labels["emotion"].values[:2] == ("calm", "angry")
    assert store.labels["score"].values[:3] == (0.5, None, 1)
    np.testing.assert_array_equal(values(store, "fixed", "pooled"), fixed.astype(np.float32))
    wanted = np.concatenate([rows.astype(np.float32).reshape(-1, 3) for rows in ragged])
    np.testing.assert_array_equal(values(store, "ragged", "tokens"), wanted)
    np.testing.assert_array_equal(values(store, "boxes", "tokens"), boxes.reshape(-1, 3))
    turned = data.select([5, 2, 0])
    other = import_dataset(turned, tmp_path / "t.zarr", points=["ragged"], dtype="float32", profile="sharded")
    assert other.samples == ["f", "c", "a"]
    np.testing.assert_array_equal(
        values(other, "ragged", "tokens"), np.concatenate([ragged[k] for k in (5, 2, 0)]).astype(np.float32)
    )
    assert len(import_dataset(data, tmp_path / "u.zarr", samples=3, ids="numbers").samples) == 3


def test_data_sets_that_are_no_rows(tmp_path: Path) -> None:
    def refused(match: str, **columns: Any) -> None:
        with pytest.raises((EngineError, ValueError), match=match):
            import_dataset(hub.Dataset.from_dict(columns), tmp_path / "no.zarr")
        if (tmp_path / "no.zarr").exists():
            assert ActivationStore.open(tmp_path / "no.zarr").n_complete == 0
            shutil.rmtree(tmp_path / "no.zarr")

    refused(
        r"rows of \[1, 2, 3\] numbers in examples 0 to 2, expected 2", x=[[1.0, 2.0], [1.0], [1.0, 2.0, 3.0]]
    )
    refused(r"rows of \[1, 2\] numbers", x=[[[1.0, 2.0]], [[1.0, 2.0], [1.0]]])
    refused("without a value", x=[[1.0, 2.0], None])
    refused("no arrays to import", x=[1, 2])
    refused("is no rows of numbers", x=[["a"], ["b"]])
    refused("is no rows of numbers", x=[[[[1.0]]], [[[1.0]]]])
    refused("expected floats", x=[[1, 2], [3, 4]])
    hub.DatasetDict({"train": hub.Dataset.from_dict({"x": [[1.0]]})}).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(EngineError, match="several splits"):
        import_store(tmp_path / "dict", tmp_path / "no.zarr", format="datasets")


def test_without_the_package(
    store: ActivationStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EngineError, match=r"pip install 'modegap\[datasets\]'"):
        as_dataset(store)
    assert main(["export", str(store.path), str(tmp_path / "x"), "--format", "datasets"]) == 1
    assert "pip install" in capsys.readouterr().err
    assert LENGTHS.sum() == store.rows("llm_final").shape[0]


def labelled(path: Path, point: str, label: str) -> ActivationStore:
    made = ActivationStore.create(
        path,
        StorePlan({point: PointPlan(1, "both", np.array([1, 2, 3]))}, ["a", "b", "c"], {label: [2, 0, 1]}),
    )
    with made.writer() as writer:
        for k in range(3):
            writer.put(k, {point: SampleRows(np.full((k + 1, 1), k + 5, "f2"), np.full(1, k + 5, "f2"))})
    made.refresh()
    return made


@pytest.mark.parametrize(("point", "label"), [("h", "index"), ("index", "h")])
def test_a_label_or_a_point_called_index(tmp_path: Path, point: str, label: str) -> None:
    made = labelled(tmp_path / "s.zarr", point, label)
    for rows, shape in (("tokens", lambda k: (k + 1, 1)), ("pooled", lambda k: (1,))):
        data = as_dataset(made, rows=rows)  # type: ignore[arg-type]
        data = pickle.loads(pickle.dumps(data))
        for k, example in enumerate(data):
            assert (example["id"], example[label]) == ("abc"[k], [2, 0, 1][k])
            np.testing.assert_array_equal(example[point], np.full(shape(k), k + 5))


@pytest.mark.parametrize(("point", "label"), [("h", "h"), ("h", "h.ids"), ("id", "x")])
def test_columns_that_would_share_a_name(tmp_path: Path, point: str, label: str) -> None:
    made = labelled(tmp_path / "s.zarr", point, label)
    for streaming in (True, False):
        with pytest.raises(ValueError, match="would hold both rows"):
            as_dataset(made, rows="tokens", streaming=streaming)
    with pytest.raises(ValueError, match="would hold both rows"):
        export_store(made, tmp_path / "out", format="datasets", rows="tokens")
    assert not (tmp_path / "out").exists()


def test_a_point_without_rows(tmp_path: Path) -> None:
    points = {
        "none": PointPlan(3, "tokens", np.zeros(2, int)),
        "some": PointPlan(2, "tokens", np.array([1, 0])),
    }
    made = ActivationStore.create(tmp_path / "s.zarr", StorePlan(points, ["a", "b"]))
    with made.writer() as writer:
        for k in range(2):
            rows = {
                name: SampleRows(np.ones((int(p.lengths[k]), p.width), "f2")) for name, p in points.items()
            }  # type: ignore[index]
            writer.put(k, rows)
    made.refresh()
    export_store(made, tmp_path / "out", format="datasets", rows="tokens")
    found = import_store(tmp_path / "out", tmp_path / "x.zarr")
    assert {name: found.rows(name).shape for name in points} == {"none": (0, 3), "some": (1, 2)}
