"""Zarr data of any version and codec become stores; what others read of ours is in test_round_trip and below."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from exchange_material import full_store, values
from zarr import codecs

from modegap.engine.errors import EngineError
from modegap.engine.interchange import import_store
from modegap.stores import verify
from modegap.stores.plan import Profile

ROWS = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::zarr.errors.UnstableSpecificationWarning"
)

V3: dict[str, dict[str, Any]] = {
    "zstd": {"compressors": codecs.ZstdCodec(level=3), "chunks": (7, 6)},
    "gzip": {"compressors": codecs.GzipCodec(level=1), "chunks": (50, 2)},
    "blosc": {"compressors": codecs.BloscCodec(cname="lz4", shuffle="bitshuffle"), "chunks": (13, 3)},
    "big endian": {"serializer": codecs.BytesCodec(endian="big"), "compressors": None, "chunks": (9, 6)},
    "transposed": {"filters": codecs.TransposeCodec(order=(1, 0)), "chunks": (20, 6)},
    "sharded": {"shards": (20, 6), "chunks": (5, 3), "compressors": codecs.ZstdCodec()},
    "keys": {"chunk_key_encoding": {"name": "v2", "separator": "."}, "chunks": (8, 6)},
}
V2: dict[str, dict[str, Any]] = {
    "zlib, shuffle": {"compressors": numcodecs.Zlib(5), "filters": [numcodecs.Shuffle(4)], "chunks": (7, 6)},
    "lzma": {"compressors": numcodecs.LZMA(), "chunks": (50, 6)},
    "delta": {"filters": [numcodecs.BitRound(23)], "compressors": numcodecs.BZ2(), "chunks": (11, 4)},
    "fortran": {"order": "F", "chunks": (10, 6), "compressors": numcodecs.LZ4()},
    "fletcher": {"filters": [numcodecs.Fletcher32()], "compressors": None, "chunks": (10, 6)},
}


@pytest.mark.parametrize(("version", "name"), [(3, name) for name in V3] + [(2, name) for name in V2])
def test_any_codec(tmp_path: Path, version: int, name: str) -> None:
    options = (V3 if version == 3 else V2)[name]
    array = zarr.create_array(
        str(tmp_path / "rows.zarr"), shape=ROWS.shape, dtype="float32", zarr_format=version, **options
    )
    array[:] = ROWS
    store = import_store(tmp_path / "rows.zarr", tmp_path / "s.zarr", dtype="float32")
    assert verify(store).ok
    np.testing.assert_array_equal(values(store, "rows", "pooled"), ROWS)


@pytest.mark.parametrize("version", [2, 3])
def test_a_group(tmp_path: Path, version: Any) -> None:
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w", zarr_format=version)
    group.attrs["model"] = "other"
    for name, dtype in (("layers/l0", "float16"), ("layers/l1", "float64"), ("mask", "bool")):
        made = group.create_array(name, shape=ROWS.shape, dtype=dtype, chunks=(9, 6))
        made[:] = ROWS if dtype != "bool" else ROWS > 0
    lengths = group.create_array("layers/l0.length", shape=(3,), dtype="int64")
    lengths[:] = [20, 0, 30]
    store = import_store(tmp_path / "g.zarr", tmp_path / "s.zarr", points=["layers.l0"])
    assert store.points["layers.l0"].rows == "tokens"
    assert store.rows("layers.l0").lengths().tolist() == [20, 0, 30]  # type: ignore[union-attr]
    assert values(store, "layers.l0", "tokens").tobytes() == ROWS.astype(np.float16).tobytes()
    assert store.provenance["model"] == "other"
    with pytest.raises(EngineError, match="different numbers of samples"):
        import_store(tmp_path / "g.zarr", tmp_path / "no.zarr")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    """numcodecs has a codec that unpickles: a Zarr array could run anything."""
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    array = zarr.create_array(
        str(tmp_path / "a.zarr"),
        shape=(4, 2),
        dtype="float32",
        chunks=(4, 2),
        zarr_format=2,
        compressors=None,
    )
    array[:] = 1
    document = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    (chunk,) = [file for file in (tmp_path / "a.zarr").iterdir() if file.name[0].isdigit()]
    chunk.write_bytes(pickle.dumps(Payload()))
    for change in (
        {"compressor": {"id": "pickle", "protocol": 5}},
        {"filters": [{"id": "pickle", "protocol": 5}]},
    ):
        (tmp_path / "a.zarr/.zarray").write_text(json.dumps({**document, **change}))
        with pytest.raises(EngineError, match="pickle"):
            import_store(tmp_path / "a.zarr", tmp_path / "s.zarr")
    assert not marker.exists()
    assert not (tmp_path / "s.zarr").exists()


def test_what_is_no_zarr(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr/zarr.json").write_text("{")
    with pytest.raises(EngineError, match="cannot read"):
        import_store(tmp_path / "x.zarr", tmp_path / "s.zarr")
    with pytest.raises(EngineError, match="no file at"):
        import_store(tmp_path / "none.zarr", tmp_path / "s.zarr", format="zarr")


@pytest.mark.parametrize("profile", ["raw", "sharded", "archive"])
@pytest.mark.filterwarnings("ignore")
def test_a_store_read_as_plain_zarr(tmp_path: Path, profile: Profile) -> None:
    """A store of ours through zarr-python alone, as any tool would read it: the stored rows."""
    ours = full_store(tmp_path / "s.zarr", profile)
    back = import_store(
        tmp_path / "s.zarr",
        tmp_path / "b.zarr",
        format="zarr",
        points=["points.llm_final.rows"],
        dtype="float32",
    )
    np.testing.assert_array_equal(
        values(back, "points.llm_final.rows", "pooled"), values(ours, "llm_final", "tokens")
    )
