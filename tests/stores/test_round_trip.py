"""What is put comes back: through the reader, and through zarr-python bit for bit."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_material import expected, files_of, fill, make_store, sample_columns, small_plan

from modegap.stores import ActivationStore, PointPlan, SampleRows, StoreError, StorePlan, verify

POINTS = ["llm_hidden_1", "llm_final", "adapter_output", "encoder_output", "wide"]


def kinds(store: ActivationStore, point: str) -> list[str]:
    rows = store.points[point].rows
    return ["tokens", "pooled"] if rows == "both" else [rows]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return make_store(tmp_path_factory.mktemp("round") / "s.zarr", small_plan())


@pytest.mark.parametrize("point", POINTS)
def test_every_row_comes_back(store: ActivationStore, point: str) -> None:
    plan = small_plan()
    for kind in kinds(store, point):
        rows = store.rows(point, kind)
        wanted = expected(plan, point, kind)
        read = rows.read(0, len(wanted), np.empty(wanted.shape, np.float32))
        if store.points[point].dtype == "float32":
            np.testing.assert_array_equal(read, wanted)
        for k in range(rows.n_chunks):
            start, stored, scale = rows.chunk(k)
            piece = wanted[start : start + len(stored)]
            if store.points[point].dtype == "float16":
                np.testing.assert_array_equal(stored, (piece / np.float32(scale)).astype(np.float16))
            np.testing.assert_array_equal(stored * np.float32(scale), read[start : start + len(stored)])


def test_columns_and_positions(store: ActivationStore) -> None:
    plan = small_plan()
    for point in ("llm_hidden_1", "adapter_output"):
        rows = store.rows(point)
        lengths = plan.points[point].lengths
        stream = plan.points[point].stream or point
        assert lengths is not None
        n = rows.shape[0]
        np.testing.assert_array_equal(rows.sample_of_row(0, n), np.repeat(np.arange(20), lengths))
        np.testing.assert_array_equal(rows.position(0, n), np.concatenate([np.arange(k) for k in lengths]))
        columns = [sample_columns(plan, i)[stream] for i in range(20)]
        np.testing.assert_array_equal(rows.token_ids(0, n), np.concatenate([ids for ids, _ in columns]))
        np.testing.assert_array_equal(rows.modality(0, n), np.concatenate([mode for _, mode in columns]))
        np.testing.assert_array_equal(rows.sample_of_row(5, 17), rows.sample_of_row(0, n)[5:17])
        np.testing.assert_array_equal(rows.position(5, 17), rows.position(0, n)[5:17])
    pooled = store.rows("encoder_output", "pooled")
    assert pooled.modality(0, 3) is None
    assert pooled.sample_of_row(2, 5).tolist() == [2, 3, 4]


def test_a_sample_and_partial_ranges(store: ActivationStore) -> None:
    rows = store.rows("llm_final")
    everything = rows.read(0, rows.shape[0])
    assert everything.dtype == np.float16
    for start, stop in [(0, 0), (0, 1), (11, 13), (7, 40), (rows.shape[0] - 1, rows.shape[0])]:
        for check in (True, False):
            np.testing.assert_array_equal(rows.read(start, stop, verify=check), everything[start:stop])
    first, last = rows.sample_range(4)
    np.testing.assert_array_equal(rows.sample(4), everything[first:last])
    assert last - first == 12
    assert rows.sample(1).shape == (0, 4)
    assert [store.sample_index(name) for name in store.samples] == list(range(len(store.samples)))
    with pytest.raises(StoreError, match=r"no sample .* among the .*, did you mean"):
        store.sample_index(store.samples[4] + "x")
    with pytest.raises(StoreError, match="`samples` has their ids"):
        store.sample_index("")


def test_scaled_rows_never_come_back_as_plain_fp16(store: ActivationStore) -> None:
    rows = store.rows("llm_hidden_1")
    assert max(rows.scale(k) for k in range(rows.n_chunks)) > 1
    assert rows.read(0, rows.shape[0]).dtype == np.float32
    with pytest.raises(ValueError, match="out must be float32"):
        rows.read(0, rows.shape[0], np.empty(rows.shape, np.float16))


@pytest.mark.filterwarnings("ignore:Object at _commit is not recognized")
def test_zarr_reads_the_same_bits(store: ActivationStore) -> None:
    group = zarr.open_group(str(store.path), mode="r")
    assert group.attrs["schema_version"] == 1
    assert group.attrs["plan_hash"] == store.plan_hash
    assert group.attrs["provenance"] == store.provenance
    for point in POINTS:
        for kind in kinds(store, point):
            folder = "points" if kind == "tokens" else "pooled"
            theirs = group[f"{folder}/{point}/rows"]
            rows = store.rows(point, kind)
            assert theirs.shape == rows.shape
            assert theirs.dtype == rows.dtype
            ours = np.concatenate([rows.chunk(k)[1] for k in range(rows.n_chunks)])
            assert theirs[:].tobytes() == ours.tobytes()
    rows = store.rows("llm_final")
    np.testing.assert_array_equal(group["tokens/llm/ids"][:], rows.token_ids(0, rows.shape[0]))
    np.testing.assert_array_equal(group["tokens/llm/modality"][:], rows.modality(0, rows.shape[0]))
    np.testing.assert_array_equal(
        group["points/llm_final/length"][:], small_plan().points["llm_final"].lengths
    )
    assert group["samples/id"][3].tobytes().rstrip(b"\0").decode() == store.samples[3]
    codes = group["samples/class"]
    assert [codes.attrs["categories"][code] for code in codes[:4]] == ["cat", "dog", "cat", "dog"]
    names = {name for name, _ in group.members(max_depth=None)}
    assert "points/wide/rows" in names


def test_equal_content_gives_equal_files(store: ActivationStore, tmp_path: Path) -> None:
    again = make_store(tmp_path / "again.zarr", small_plan())
    assert again.content_hash() == store.content_hash()
    assert files_of(again.path) == files_of(store.path)


@st.composite
def plans(draw: st.DrawFn) -> StorePlan:
    n = draw(st.integers(1, 9))
    streams = {f"s{i}": draw(st.lists(st.integers(0, 11), min_size=n, max_size=n)) for i in range(2)}
    points = {}
    for index in range(draw(st.integers(1, 4))):
        rows = draw(st.sampled_from(["tokens", "pooled", "both"]))
        stream = draw(st.sampled_from(sorted(streams))) if rows != "pooled" else None
        points[f"p{index}"] = PointPlan(
            width=draw(st.integers(1, 9)),
            rows=rows,
            lengths=None if stream is None else np.array(streams[stream]),
            dtype=draw(st.sampled_from(["float16", "float32"])),
            stream=stream,
        )
    return StorePlan(points, [f"{i}" for i in range(n)], chunk_bytes=draw(st.integers(1, 200)))


@given(plan=plans(), seed=st.integers(0, 2**32 - 1), pause=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_plan_round_trips(plan: StorePlan, seed: int, pause: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(plan.sample_ids)
    samples = []
    for sample in range(n):
        rows = {}
        for name, point in plan.points.items():
            t = None if point.lengths is None else int(point.lengths[sample])
            draw = [
                rng.standard_normal(k).astype(np.float16) for k in ((t or 0, point.width), (point.width,))
            ]
            rows[name] = SampleRows(
                None if t is None else draw[0], draw[1] if point.rows != "tokens" else None
            )
        samples.append(rows)
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore.create(Path(folder) / "s.zarr", plan)
        with store.writer() as writer:
            for sample in writer.todo.tolist()[:pause]:
                writer.put(sample, samples[sample])
        with store.writer() as writer:
            for sample in writer.todo.tolist():
                assert writer.put(sample, samples[sample])
        opened = ActivationStore.open(store.path)
        assert opened.n_complete == n
        assert verify(opened, threads=1).ok
        group = zarr.open_group(str(store.path), mode="r")
        for name, point in plan.points.items():
            for kind in ("tokens", "pooled"):
                if point.rows in (kind, "both"):
                    rows = [getattr(given[name], kind) for given in samples]
                    wanted = np.stack(rows) if kind == "pooled" else np.concatenate(rows)
                    array = opened.rows(name, kind)
                    np.testing.assert_array_equal(array.read(0, len(wanted)), wanted)
                    folder_name = "points" if kind == "tokens" else "pooled"
                    np.testing.assert_array_equal(group[f"{folder_name}/{name}/rows"][:], wanted)


def test_parts_give_the_same_files_as_one_writer(store: ActivationStore, tmp_path: Path) -> None:
    plan = small_plan()
    divided = ActivationStore.create(tmp_path / "parts.zarr", plan)
    parts = divided.parts(3)
    assert len(parts) == 3
    assert parts[0][0] == 0
    assert parts[-1][1] == 20
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    writers = [divided.writer(*part) for part in parts]
    for writer in reversed(writers):
        fill(writer, plan)
        writer.close()
    assert files_of(divided.path) == files_of(store.path)


@pytest.mark.parametrize(
    ("count", "long", "edges"),
    [
        (400, 0, [0, 256, 400]),  # 200 is nearer to 256 than to 128
        (600, 0, [0, 256, 600]),
        (200, 0, [0, 100, 200]),  # too few for two chunks of pooled rows
        (330, 5, [0, 256, 330]),  # most bytes are in the last samples: the nearest multiple is behind the end
    ],
)
def test_parts_begin_at_the_nearest_chunk_of_pooled_rows(
    count: int, long: int, edges: list[int], tmp_path: Path
) -> None:
    lengths = np.ones(count, dtype=np.int64)
    lengths[count - long :] = 1000
    plan = StorePlan({"x": PointPlan(64, "both", lengths)}, [f"{i}" for i in range(count)], {})
    store = ActivationStore.create(tmp_path / "x.zarr", plan)
    assert store.points["x"].pooled_chunk_rows == 128
    assert store.parts(2) == list(pairwise(edges))


def test_the_reader_keeps_one_chunk(store: ActivationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small reads in a row load each chunk once, into one buffer; a caller's buffer needs none."""
    from modegap.stores import reading

    made, loaded = [], []
    allocate, load = reading.aligned_empty, reading.read_block
    monkeypatch.setattr(reading, "aligned_empty", lambda *size: made.append(size) or allocate(*size))
    monkeypatch.setattr(reading, "read_block", lambda *given: loaded.append(given[0]) or load(*given))
    rows = ActivationStore.open(store.path).rows("llm_final")
    for row in range(rows.shape[0]):
        rows.read(row, row + 1)
    assert len(loaded) == rows.n_chunks
    assert len(made) == 1
    buffer = np.empty((rows.chunk_rows, 4), np.float16)
    for k in range(rows.n_chunks):
        _, values, _ = rows.chunk(k, buffer)
        assert np.shares_memory(values, buffer)
    assert len(made) == 1
