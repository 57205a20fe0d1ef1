"""An import that goes on takes up only rows of the same source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_material import full_store

from modegap.engine.errors import EngineError
from modegap.engine.interchange import comparing, export_store, import_store
from modegap.stores import ActivationStore

N, WIDTH = 300, 5


def source(path: Path, rows: np.ndarray, tokens: np.ndarray) -> Path:
    lengths = np.full(N, len(tokens) // N)
    np.savez(path, llm=rows, adapter=tokens, **{"adapter.length": lengths})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("profile", ["raw", "sharded", "archive"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_one_other_value_is_noticed(tmp_path: Path, profile: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    rows, tokens = rng.standard_normal((N, WIDTH)), rng.standard_normal((2 * N, WIDTH)).astype(np.float32)
    rows[200] *= 1e6  # in float16 its chunk is scaled
    path = source(tmp_path / "x.npz", rows, tokens)
    out = tmp_path / "x.zarr"
    before = import_store(path, out, profile=profile, dtype=dtype).content_hash()
    assert import_store(path, out, profile=profile, dtype=dtype).content_hash() == before
    for array, at, name, sample in (
        (rows, 7, "llm", 7),
        (rows, 200, "llm", 200),
        (tokens, 401, "adapter", 200),
    ):
        kept = array[at, 3]
        array[at, 3] += abs(kept) / 100
        source(path, rows, tokens)
        with pytest.raises(EngineError, match=f"rows of '{name}' than x.npz .first in sample '{sample}'"):
            import_store(path, out, profile=profile, dtype=dtype)
        array[at, 3] = kept
    assert ActivationStore.open(out).content_hash() == before


def test_an_interrupted_import_of_another_run(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 290:
            raise KeyboardInterrupt

    rng = np.random.default_rng(0)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        np.save(tmp_path / run / "x.npy", rng.standard_normal((N, WIDTH)))
    with pytest.raises(KeyboardInterrupt):
        import_store(tmp_path / "one" / "x.npy", tmp_path / "x.zarr", progress=stop)
    with pytest.raises(EngineError, match="has changed: choose another path"):
        import_store(tmp_path / "two" / "x.npy", tmp_path / "x.zarr")
    store = import_store(tmp_path / "one" / "x.npy", tmp_path / "x.zarr")
    np.testing.assert_array_equal(
        store.rows("x", "pooled").read(0, N),
        np.load(tmp_path / "one" / "x.npy").astype(np.float32).astype("f2"),
    )


def test_whatever_is_exported_is_the_same_again(tmp_path: Path) -> None:
    store = full_store(tmp_path / "s.zarr")
    out = export_store(store, tmp_path / "x.safetensors", rows="both")
    first = import_store(out, tmp_path / "x.zarr").content_hash()
    assert import_store(out, tmp_path / "x.zarr").content_hash() == first


def test_from_afar_a_few_chunks_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "_CHUNKS_FROM_AFAR", 2)
    rows = np.random.default_rng(0).standard_normal((N, WIDTH))  # pooled rows: chunks of 128
    np.save(tmp_path / "x.npy", rows)
    url = "memory://compared.zarr"
    import_store(tmp_path / "x.npy", url)
    rows[130] += 1
    np.save(tmp_path / "x.npy", rows)
    import_store(tmp_path / "x.npy", url)
    rows[N - 1] += 1
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(EngineError, match="first in sample '299'"):
        import_store(tmp_path / "x.npy", url)
