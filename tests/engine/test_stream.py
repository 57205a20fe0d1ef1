"""Streams of a real store: what arrives, in what memory, and that the thread always ends."""

import gc
import importlib
import runpy
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.moments import CrossMoments, Moments
from modegap.engine.reduce import reduce_pairs
from modegap.engine.stream import stream, stream_pairs
from modegap.stores import ActivationStore, DamagedChunkError, PointPlan, SampleRows, StoreError, StorePlan

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_device.py"))))

WIDTH, CHUNK = 24, 32
LENGTHS = np.array([7, 50, 0, 33, 64, 5, 90, 1])
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
ROWS = int(LENGTHS.sum())
LARGE = slice(64, 80)  # rows beyond fp16: their chunk is stored with a scale


@pytest.fixture(scope="module")
def values():
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    x[LARGE] *= 60_000
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("stream") / "s.zarr"
    tokens = PointPlan(WIDTH, "both", LENGTHS, stream="llm")
    plan = StorePlan(
        points={
            "a": tokens,
            "b": PointPlan(8, "tokens", LENGTHS, stream="llm"),
            "p": PointPlan(5, "pooled"),
            "c": PointPlan(4, "tokens", LENGTHS + 1, stream="other"),
        },
        sample_ids=[f"s{i}" for i in range(len(LENGTHS))],
        chunk_bytes=CHUNK * WIDTH * 2,
    )
    created = ActivationStore.create(path, plan)
    with created.writer() as writer:
        for i, length in enumerate(LENGTHS.tolist()):
            part = values[STARTS[i] : STARTS[i + 1]]
            pooled = part.mean(0) if length else np.zeros(WIDTH, np.float32)
            modality = np.where(np.arange(length) % 3 == 0, 1, 2).astype(np.uint8)
            rows = {
                "a": SampleRows(tokens=part, pooled=pooled / 10),
                "b": SampleRows(tokens=np.clip(part[:, :8], -100, 100)),
                "p": SampleRows(pooled=np.full(5, float(i))),
                "c": SampleRows(tokens=np.zeros((length + 1, 4))),
            }
            columns = {"llm": (np.arange(length, dtype=np.int32), modality), "other": (None, None)}
            writer.put(i, rows, columns)
    return ActivationStore.open(path)


def true(batch):
    return batch.values(torch.float64).numpy().copy()


def threads():
    return [t for t in threading.enumerate() if t.name.startswith(("modegap-prefetch", "modegap-read"))]


@pytest.mark.parametrize("batch_rows", [None, 1, 7, 32, 33, 64, 100, 10_000])
def test_all_rows_in_order(store, values, batch_rows):
    scaled, at = [], 0
    for batch in stream(store, "a", batch_rows=batch_rows):
        assert batch.start == at
        assert len(batch) <= (batch_rows or ROWS)
        np.testing.assert_allclose(true(batch), values[at : at + len(batch)], rtol=1e-3, atol=0.1)
        np.testing.assert_array_equal(true(batch), store.rows("a").read(at, at + len(batch)))
        span = np.arange(at, at + len(batch))
        sample = np.searchsorted(STARTS, span, side="right") - 1
        assert batch.sample.tolist() == sample.tolist()
        assert batch.position.tolist() == (span - STARTS[sample]).tolist()
        assert batch.modality.tolist() == np.where((span - STARTS[sample]) % 3 == 0, 1, 2).tolist()
        scaled.append(batch.scale)
        at = batch.end
    assert at == ROWS
    assert set(scaled) > {1.0}
    assert not threads()


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 6), (40, 200), (64, 96), (31, 33), (33, ROWS)])
def test_a_range(store, start, stop):
    parts = [true(batch) for batch in stream(store, "a", start=start, stop=stop, batch_rows=50)]
    found = np.concatenate(parts) if parts else np.zeros((0, WIDTH))
    np.testing.assert_array_equal(found, store.rows("a").read(start, stop))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"select": "text"}, lambda sample, position: position % 3 == 0),
        ({"select": ["image", "audio"]}, lambda sample, position: position % 3 != 0),
        ({"select": "audio"}, lambda sample, position: sample < 0),
        ({"samples": [6, 1]}, lambda sample, position: np.isin(sample, [1, 6])),
        ({"samples": np.arange(8) == 3}, lambda sample, position: sample == 3),
        ({"samples": [0, 3, 4], "select": "text"}, lambda s, p: np.isin(s, [0, 3, 4]) & (p % 3 == 0)),
        ({"samples": []}, lambda sample, position: sample < 0),
        ({"samples": [6], "start": 170, "stop": 220}, lambda s, p: (s == 6) & (p >= 11) & (p < 61)),
    ],
)
@pytest.mark.parametrize("batch_rows", [None, 9])
def test_selections(store, options, kept, batch_rows):
    span = np.arange(ROWS)
    sample = np.searchsorted(STARTS, span, side="right") - 1
    wanted = span[kept(sample, span - STARTS[sample])]
    found, index = [], []
    for batch in stream(store, "a", batch_rows=batch_rows, **options):
        rows = [batch.global_row(i) for i in range(len(batch))]
        assert batch.start == rows[0]
        assert batch.end > rows[-1]
        assert batch.sample.tolist() == sample[rows].tolist()
        found.append(true(batch))
        index += rows
    assert index == wanted.tolist()
    if len(wanted):
        np.testing.assert_array_equal(np.concatenate(found), store.rows("a").read(0, ROWS)[wanted])
    assert not threads()


def test_chunks_without_a_selected_row_are_not_read(store):
    read = []
    list(stream(store, "a", samples=[6], progress=lambda *done: read.append(done)))
    chunks = -(-STARTS[7] // CHUNK) - STARTS[6] // CHUNK
    assert read[-1][2] == chunks * CHUNK * WIDTH * 2


@pytest.fixture(params=[False, True], ids=["threads", "files"])
def lagging(monkeypatch, request):
    """A device that copies and computes late, in the place of a GPU."""
    device = late.LateCopies()
    if request.param:
        device.read_files()
    module = importlib.import_module("modegap.engine.stream")
    monkeypatch.setattr(module, "_place", lambda name: None if name is None else torch.device("cuda", 0))
    monkeypatch.setattr(module, "CudaCopies", lambda place: device)
    yield device
    device.end()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": 40, "stop": 200},
        {"select": "text"},
        {"samples": [1, 6], "select": ["image"]},
        {"batch_rows": 100, "verify": False},
        {"batch_rows": 7, "readers": 1, "prefetch": 1},
        {"batch_rows": 96, "samples": [2, 3]},
    ],
)
def test_a_lagging_device_gets_the_same_batches(store, lagging, options):
    found = []
    for batch in stream(store, "a", device="cuda", **options):
        lagging.compute.add(lambda x=batch.x: found.append(x.clone()))
    lagging.compute.mark().synchronize()
    wanted = [batch.x.clone() for batch in stream(store, "a", **({"batch_rows": 10_000} | options))]
    assert torch.equal(torch.cat(found), torch.cat(wanted))
    assert lagging.pinned_made <= options.get("readers", 12) + 3
    assert lagging.empty_made <= options.get("prefetch", 4) + 1
    assert not threads()


def test_without_checksums_damage_goes_through(store, tmp_path):
    path = tmp_path / "copy.zarr"
    shutil.copytree(store.path, path)
    victim = path / "points/a/rows/c/1/0"
    content = bytearray(victim.read_bytes())
    content[9] ^= 64
    victim.write_bytes(content)
    copy = ActivationStore.open(path)
    with pytest.raises(DamagedChunkError):
        copy.rows("a").chunk(1)
    got = copy.rows("a").chunk(1, verify=False)[1]
    assert (got != store.rows("a").chunk(1)[1]).sum() == 1
    rows = sum(len(batch) for batch in stream(copy, "a", verify=False))
    assert rows == ROWS
    victim.unlink()
    with pytest.raises(DamagedChunkError, match="its file is missing"):
        list(stream(copy, "a", verify=False))
    assert not threads()


def test_pooled_rows(store):
    (batch,) = stream(store, "p", kind=None)
    assert batch.x[:, 0].tolist() == list(range(8))
    assert batch.modality is None
    assert batch.sample.tolist() == list(range(8))
    assert next(stream(store, "a", kind="pooled")).x.shape == (8, WIDTH)


def test_progress(store):
    seen = []
    list(stream(store, "a", progress=lambda rows, total, nbytes: seen.append((rows, total, nbytes))))
    assert seen[-1][:2] == (ROWS, ROWS)
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)
    assert seen[-1][2] >= ROWS * WIDTH * 2


def test_buffers_are_few_and_page_aligned(store):
    places = {batch.x.data_ptr() for batch in stream(store, "a", batch_rows=CHUNK, prefetch=2)}
    assert len(places) <= 3
    assert all(place % 4096 == 0 for place in places)


def test_a_batch_is_intact_until_the_next_is_asked_for(store):
    for batch in stream(store, "a", batch_rows=CHUNK, prefetch=1):
        before = batch.x.clone()
        threading.Event().wait(0.005)
        assert torch.equal(batch.x, before)


@pytest.mark.parametrize("end", ["break", "close", "drop", "error"])
def test_an_early_end_leaves_no_thread(store, end):
    batches = stream(store, "a", batch_rows=4, prefetch=1)
    next(batches)
    assert 1 <= len(threads()) <= 3
    if end == "break":
        for _ in batches:
            break
        batches.close()
    elif end == "close":
        batches.close()
    elif end == "error":
        with pytest.raises(KeyError):
            batches.throw(KeyError("consumer"))
    del batches
    gc.collect()
    assert not threads()


def test_a_stream_that_is_never_read_starts_no_thread(store):
    batches = stream(store, "a")
    assert not threads()
    del batches


def test_damage_is_raised_where_it_is_met(store, tmp_path):
    path = tmp_path / "copy.zarr"
    shutil.copytree(store.path, path)
    copy = ActivationStore.open(path)
    files = sorted(
        f for f in (path / "points" / "a" / "rows").rglob("*") if f.is_file() and f.name != "zarr.json"
    )
    victim = max(files, key=lambda f: f.stat().st_mtime_ns)
    content = bytearray(victim.read_bytes())
    content[11] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DamagedChunkError):
        list(stream(copy, "a", batch_rows=CHUNK))
    assert not threads()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": -1}, ValueError, "start, stop"),
        ({"start": 9, "stop": 8}, ValueError, "start, stop"),
        ({"stop": ROWS + 1}, ValueError, f"<= {ROWS}"),
        ({"batch_rows": 0}, ValueError, "batch_rows"),
        ({"prefetch": 0}, ValueError, "prefetch"),
        ({"readers": 0}, ValueError, "readers"),
        ({"device": "meta"}, ValueError, "device: got 'meta', expected 'cpu' or an NVIDIA GPU"),
        ({"select": "video"}, ValueError, "expected one or more of text, image, audio"),
        ({"select": "text", "kind": "pooled"}, ValueError, "pooled rows have no modality"),
        ({"samples": [8]}, ValueError, "expected 0 to 7"),
        ({"samples": [True]}, ValueError, r"expected \(8,\)"),
        ({"samples": [0.5]}, ValueError, "expected integers or bool"),
        ({"kind": "rows"}, ValueError, "kind"),
    ],
)
def test_bad_arguments_fail_at_the_call(store, options, error, message):
    with pytest.raises(error, match=message):
        stream(store, "a", **options)
    with pytest.raises(StoreError, match=r"did you mean 'a'|this store has"):
        stream(store, "aa")


def test_an_incomplete_store_gives_its_complete_samples(tmp_path):
    plan = StorePlan(
        points={"a": PointPlan(4, "tokens", np.full(40, 10))},
        sample_ids=[str(i) for i in range(40)],
        chunk_bytes=4 * 2 * 16,
    )
    with ActivationStore.create(tmp_path / "s.zarr", plan).writer() as writer:
        for i in range(20):
            rows = np.full((10, 4), i, np.float16)
            writer.put(
                i, {"a": SampleRows(tokens=rows)}, {"a": (np.zeros(10, np.int32), np.ones(10, np.uint8))}
            )
    opened = ActivationStore.open(tmp_path / "s.zarr")
    done = opened.rows("a").n_valid_rows
    assert 0 < done < 400
    assert sum(len(batch) for batch in stream(opened, "a")) == done


@pytest.mark.parametrize("batch_rows", [None, 10])
def test_pairs_of_points(store, batch_rows):
    at = 0
    for pair in stream_pairs(store, ("a", "b"), batch_rows=batch_rows):
        assert pair.x.start == pair.y.start == at
        np.testing.assert_array_equal(true(pair.x), store.rows("a").read(at, pair.end))
        np.testing.assert_array_equal(true(pair.y), store.rows("b").read(at, pair.end))
        at = pair.end
    assert at == ROWS
    assert not threads()
    result = reduce_pairs(store, ("a", "b"), CrossMoments("exact"), batch_rows=batch_rows, select="image")
    a, b = (store.rows(name).read(0, ROWS).astype(np.float64) for name in ("a", "b"))
    image = store.rows("a").modality(0, ROWS) == 2
    want = np.cov(a[image].T, b[image].T)[:WIDTH, WIDTH:]
    np.testing.assert_allclose(result.cross_covariance, want, rtol=0, atol=1e-10 * np.abs(want).max())
    assert result.certificate.store_hashes == {"store": store.content_hash()}


def test_points_of_different_rows_do_not_pair(store):
    with pytest.raises(ValueError, match="expected the same rows"):
        stream_pairs(store, ("a", "c"))


@pytest.mark.parametrize("device", ["gpu7", "cuda:x", ""])
def test_a_device_that_torch_does_not_know(store, device):
    with pytest.raises(ValueError, match=r"device: got .* expected 'cpu' or an NVIDIA GPU"):
        stream(store, "a", device=device)
    with pytest.raises(ValueError, match="device: got"):
        Moments().boundary(device)
