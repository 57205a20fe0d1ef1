"""Stores as Dask arrays and xarray data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modegap.stores import ActivationStore, PointPlan, SampleRows, StoreError, StorePlan, lazyarrays

pytest.importorskip("dask.array")


def make(path: Path, *, complete: int = 5, large: bool = False) -> ActivationStore:
    rng = np.random.default_rng(0)
    lengths = np.array([3, 40, 1, 70, 25])
    plan = StorePlan(
        points={"a": PointPlan(8, "both", lengths, stream="s"), "b": PointPlan(4, "pooled", None)},
        sample_ids=["v", "w", "x", "y", "z"],
        labels={
            "digit": [1, 2, 3, 4, 5],
            "name": ["p", None, "q", "p", "q"],
            "score": [0.5, None, 1.5, 2.5, 3.5],
        },
        provenance={},
        chunk_bytes=512,
    )
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for i in range(complete):
            x = rng.standard_normal((lengths[i], 8)).astype(np.float32)
            if large and i == 3:
                x *= 1e6
            columns = {"s": (np.arange(len(x), dtype=np.int32), np.full(len(x), 2, dtype=np.uint8))}
            writer.put(i, {"a": SampleRows(x, x.mean(0)), "b": SampleRows(None, x[0, :4])}, columns)
    return ActivationStore.open(path)


def test_blocks_are_the_chunks(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    array = store.to_dask("a")
    rows = store.rows("a")
    assert array.shape == (139, 8)
    assert array.dtype == np.float16
    assert array.chunks[0] == (*[rows.chunk_rows] * (139 // rows.chunk_rows), 139 % rows.chunk_rows)
    assert np.array_equal(array.compute(scheduler="synchronous"), rows.read(0, 139))
    part = array[30:50, 2].compute(scheduler="synchronous")
    assert np.array_equal(part, rows.read(30, 50)[:, 2])
    assert store.to_dask("b").shape == (5, 4)


def test_scaled_chunks_have_their_true_values(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", large=True)
    array = store.to_dask("a")
    assert array.dtype == np.float32
    assert np.array_equal(array.compute(scheduler="synchronous"), store.rows("a").read(0, 139))
    assert abs(array).max().compute(scheduler="synchronous") > 1e6


def test_nothing_of_an_incomplete_sample(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr", complete=0)
    assert store.to_dask("a").compute().shape == (0, 8)


def test_a_store_that_was_replaced(tmp_path: Path) -> None:
    store = make(tmp_path / "a.zarr")
    array = store.to_dask("a")
    store.path.rename(tmp_path / "b.zarr")
    plan = StorePlan({"a": PointPlan(8, "pooled", None)}, ["v"], {}, {})
    ActivationStore.create(tmp_path / "a.zarr", plan)
    with pytest.raises(StoreError, match="another store now"):
        array.compute(scheduler="synchronous")


def test_xarray_has_ids_and_labels(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    store = make(tmp_path / "a.zarr")
    tokens = store.to_xarray("a")
    assert tokens.rows.dims == ("row", "channel")
    assert np.array_equal(tokens.sample_id.values, np.repeat(store.samples, [3, 40, 1, 70, 25]))
    assert np.array_equal(tokens.position.values[:5], [0, 1, 2, 0, 1])
    mean = tokens.rows.groupby("digit").mean().compute(scheduler="synchronous")
    want = np.stack([store.rows("a").sample(i).astype(np.float64).mean(0) for i in range(5)])
    assert np.allclose(mean.values, want, atol=2e-3)
    pooled = store.to_xarray("b")
    assert pooled.rows.dims == ("sample", "channel")
    assert pooled.rows.sel(sample="y").values.tolist() == store.rows("b", "pooled").read(3, 4)[0].tolist()
    names = pooled["name"].values.tolist()
    assert names[0] == "p"
    assert names[1] is None or np.isnan(names[1])
    assert np.isnan(pooled.score.values[1])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match=r"unknown point|no point"):
        store.to_dask("c")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(lazyarrays.importlib, "import_module", missing)
    with pytest.raises(StoreError, match=r"pip install 'dask\[array\]'"):
        store.to_dask("a")
    with pytest.raises(StoreError, match="pip install 'xarray'"):
        store.to_xarray("a")
