"""Shards and compressed chunks: the same rows as in plain ones, for zarr-python and tensorstore too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    PointPlan,
    SampleRows,
    StorePlan,
    info,
    repair,
    verify,
)
from modegap.stores.plan import Profile

PROFILES: list[Profile] = ["sharded", "archive"]
ROWS = [
    ("llm_hidden_1", "tokens"),
    ("llm_hidden_1", "pooled"),
    ("llm_final", "tokens"),
    ("adapter_output", "tokens"),
    ("encoder_output", "pooled"),
    ("wide", "tokens"),
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("raw") / "s.zarr", small_plan())


@pytest.fixture(params=PROFILES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationStore:
    return make_store(tmp_path / "s.zarr", small_plan(profile=request.param))


@pytest.fixture(params=["raw", *PROFILES])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> ActivationStore:
    return make_store(tmp_path / "s.zarr", small_plan(profile=request.param))


def path_of(point: str, kind: str) -> str:
    return f"{'points' if kind == 'tokens' else 'pooled'}/{point}/rows"


def stored(store: ActivationStore, point: str, kind: str) -> np.ndarray:
    rows = store.rows(point, kind)
    return np.concatenate([rows.chunk(k)[1] for k in range(rows.n_chunks)])


def test_every_profile_holds_the_same_rows(raw: ActivationStore, store: ActivationStore) -> None:
    assert verify(store).ok
    assert store.n_complete == 20
    assert store.plan_hash != raw.plan_hash
    for point, kind in ROWS:
        ours, theirs = store.rows(point, kind), raw.rows(point, kind)
        assert (ours.shape, ours.chunk_rows, ours.n_chunks) == (
            theirs.shape,
            theirs.chunk_rows,
            theirs.n_chunks,
        )
        assert ours.committed.shape == (ours.n_chunks,)
        n = ours.shape[0]
        # A shard shares one scale, so its stored values may be scaled where a chunk's are not.
        tolerance = 2.0**-11 if ours.dtype == np.float16 else 0
        whole = ours.read(0, n, np.empty(ours.shape, np.float32))
        np.testing.assert_allclose(whole, theirs.read(0, n, np.empty(ours.shape, np.float32)), rtol=tolerance)
        for check in (True, False):
            for start, stop in [(0, 1), (n // 2, n // 2 + 3), (n - 1, n)]:
                piece = ours.read(
                    start, stop, np.empty((stop - start, ours.shape[1]), np.float32), verify=check
                )
                np.testing.assert_array_equal(piece, whole[start:stop])
        seen = np.concatenate([values * np.float32(scale) for _, values, scale in ours.chunks()])
        np.testing.assert_array_equal(seen, whole)


@pytest.mark.filterwarnings("ignore:Object at _commit is not recognized")
def test_zarr_and_tensorstore_read_the_same_bits(any_store: ActivationStore) -> None:
    store = any_store
    tensorstore = pytest.importorskip("tensorstore")
    for point, kind in ROWS:
        ours = stored(store, point, kind)
        path = store.path / path_of(point, kind)
        assert zarr.open_array(str(path), mode="r")[:].tobytes() == ours.tobytes()
        spec = {"driver": "zarr3", "kvstore": f"file://{path}"}
        theirs = tensorstore.open(spec, read=True).result().read().result()
        assert theirs.tobytes() == ours.tobytes()


@pytest.mark.parametrize("writer", ["zarr", "tensorstore"])
def test_what_others_write_is_read_and_checked(any_store: ActivationStore, writer: str) -> None:
    store = any_store
    for point, kind in ROWS:
        ours = stored(store, point, kind)
        path = store.path / path_of(point, kind)
        if writer == "zarr":
            with zarr.config.set({"array.write_empty_chunks": True}):
                zarr.open_array(str(path), mode="r+")[:] = ours
        else:
            tensorstore = pytest.importorskip("tensorstore")
            spec = {"driver": "zarr3", "kvstore": f"file://{path}"}
            tensorstore.open(spec, open=True).result()[...] = np.zeros_like(ours)
            tensorstore.open(spec, open=True).result()[...] = ours
        assert stored(store, point, kind).tobytes() == ours.tobytes()
        some = store.rows(point, kind)
        np.testing.assert_array_equal(some.read(2, 5, verify=False), some.read(2, 5))


def test_absent_chunks_of_a_shard_are_zeros(tmp_path: Path) -> None:
    plan = StorePlan(
        {"p": PointPlan(4, "tokens", np.array([12]))},
        ["a"],
        chunk_bytes=32,
        profile="sharded",
        shard_bytes=96,
    )
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    rows = np.arange(48, dtype=np.float16).reshape(12, 4)
    rows[4:8] = 0
    with store.writer() as writer:
        writer.put(0, {"p": SampleRows(rows)})
    array = zarr.open_array(
        str(store.path / "points/p/rows"), mode="r+", config={"write_empty_chunks": False}
    )
    assert array.shards == (12, 4)
    array[:] = rows
    assert (store.path / "points/p/rows/c/0/0").stat().st_size == 2 * 36 + 3 * 16 + 4
    reader = store.rows("p")
    np.testing.assert_array_equal(reader.read(0, 12), rows)
    np.testing.assert_array_equal(reader.read(5, 7, verify=False), rows[5:7])
    rows[5] = 1
    array[:] = rows
    with pytest.raises(DamagedChunkError, match=r"shard 0 \(rows 4 to 7 of .*checksum of its commit record"):
        reader.read(0, 12)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_flipped_bit_is_found_and_named(tmp_path: Path, profile: Profile) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan(profile=profile))
    file = store.path / "points/llm_final/rows/c/1/0"
    sound = file.read_bytes()
    first, last = (36, 72) if profile == "sharded" else (12, 24)
    for at in [*range(0, len(sound), 19), *range(len(sound) - 5, len(sound))]:
        damaged = bytearray(sound)
        damaged[at] ^= 1 << at % 8
        file.write_bytes(damaged)
        (damage,) = verify(store, threads=1).damaged
        assert (damage.point, damage.kind, damage.chunk) == ("llm_final", "tokens", 1)
        assert first <= damage.rows[0] < damage.rows[1] <= last
        if profile == "sharded" and at < 3 * 100:
            assert damage.rows == (36 + 12 * (at // 100), 48 + 12 * (at // 100))
        with pytest.raises(DamagedChunkError, match="llm_final"):
            stored(store, "llm_final", "tokens")
    for size in (0, 3, 60, len(sound) - 1):
        file.write_bytes(sound[:size])
        (damage,) = verify(store, threads=1).damaged
        assert damage.chunk == 1
        with pytest.raises(DamagedChunkError, match="llm_final"):
            stored(store, "llm_final", "tokens")
    file.write_bytes(b"x" + sound)
    assert not verify(store, threads=1).ok


def test_repair_and_resume(store: ActivationStore, tmp_path: Path) -> None:
    profile: Profile = store.plan["profile"]
    wanted = files_of(store.path)
    file = store.path / "points/llm_final/rows/c/1/0"
    file.write_bytes(bytes(file.stat().st_size))
    (store.path / "points/wide/rows/c/0/0").unlink()
    (store.path / "_commit/points/adapter_output/rows/0.json").write_text('{"rows": 1}')
    opened = ActivationStore.open(store.path, "r+")
    report = repair(opened)
    assert len(report.withdrawn) + len(report.restored) == 3
    with opened.writer() as writer:
        fill(writer, small_plan(profile=profile))
    # The record that was made from its chunk knows the largest value as it is stored.
    made = "_commit/points/adapter_output/rows/0.json"
    assert {**files_of(store.path), made: b""} == {**wanted, made: b""}
    wanted = files_of(store.path)
    short = store.path / "points/wide/rows/c/1/0"
    short.write_bytes(short.read_bytes()[:-1])
    with ActivationStore.open(store.path, "r+").writer() as writer:
        assert writer.withdrawn == [("points/wide/rows", 1)]
        fill(writer, small_plan(profile=profile))
    assert files_of(store.path) == wanted


def test_parts_and_interruptions_give_the_same_files(store: ActivationStore, tmp_path: Path) -> None:
    plan = small_plan(profile=store.plan["profile"])
    divided = ActivationStore.create(tmp_path / "parts.zarr", plan)
    for part in divided.parts(3):
        with divided.writer(*part) as writer:
            fill(writer, plan, writer.todo.tolist()[:4])
        with divided.writer(*part) as writer:
            fill(writer, plan)
    assert files_of(divided.path) == files_of(store.path)
    assert divided.content_hash() == store.content_hash()


def test_info_and_sizes(raw: ActivationStore, tmp_path: Path) -> None:
    lengths = np.full(64, 128)

    def of(profile: Profile) -> ActivationStore:
        plan = StorePlan(
            {"p": PointPlan(64, "tokens", lengths)},
            [str(i) for i in range(64)],
            chunk_bytes=2**16,
            profile=profile,
            shard_bytes=2**18,
        )
        store = ActivationStore.create(tmp_path / f"{profile}.zarr", plan)
        rng = np.random.default_rng(0)
        with store.writer() as writer:
            for sample in range(64):
                writer.put(sample, {"p": SampleRows(rng.standard_normal((128, 64)).astype(np.float16))})
        return store

    plain, sharded, archive = of("raw"), of("sharded"), of("archive")
    assert len(list((plain.path / "points/p/rows/c").iterdir())) == 16
    assert len(list((sharded.path / "points/p/rows/c").iterdir())) == 4
    assert info(archive).bytes_on_disk < 0.95 * info(plain).bytes_on_disk
    assert info(sharded).arrays[0].rows_committed == 64 * 128
    assert stored(archive, "p", "tokens").tobytes() == stored(plain, "p", "tokens").tobytes()
    assert stored(sharded, "p", "tokens").tobytes() == stored(plain, "p", "tokens").tobytes()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="profile must be one of raw, sharded, archive, got 'zip'"):
        small_plan(profile="zip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard_bytes must be chunk_bytes to"):
        StorePlan({"p": PointPlan(4, "pooled")}, ["a"], shard_bytes=1)
