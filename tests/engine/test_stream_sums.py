"""Streams whose chunks are verified on the device: on a double that lags, and (marker gpu) on a GPU.

Whatever is wrong must be said in the words of the host's verified read, before a wrong row reaches the consumer.
"""

import importlib
import json
import runpy
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.errors import EngineError
from modegap.engine.stream import stream
from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    NotCommittedError,
    PointPlan,
    SampleRows,
    StoreError,
    StorePlan,
    checksum,
    summing,
)

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_device.py"))))

WIDTH, CHUNK, SAMPLE, SAMPLES = 12, 16, 10, 20
ROWS = SAMPLE * SAMPLES  # 12 whole chunks and one half full


def write(path, profile="raw", dtype="float16", width=WIDTH, samples=SAMPLES):
    chunk_bytes = CHUNK * width * np.dtype(dtype).itemsize
    shards = {"shard_bytes": 4 * chunk_bytes} if profile == "sharded" else {}
    plan = StorePlan(
        {"a": PointPlan(width, "tokens", np.full(SAMPLES, SAMPLE), dtype=dtype)},
        [f"s{i}" for i in range(SAMPLES)],
        profile=profile,
        chunk_bytes=chunk_bytes,
        **shards,
    )
    rows = np.random.default_rng(0).standard_normal((ROWS, width)).astype(np.float32)
    rows[5 * CHUNK : 6 * CHUNK] *= 1e5  # a chunk with a scale of its own
    with ActivationStore.create(path, plan).writer() as writer:
        for i in range(samples):
            writer.put(i, {"a": SampleRows(rows[i * SAMPLE : (i + 1) * SAMPLE])})
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sums") / "s.zarr")


@pytest.fixture
def copy(sound, tmp_path):
    path = tmp_path / "copy.zarr"
    shutil.copytree(sound.path, path)
    return ActivationStore.open(path)


def chunk_file(store, chunk):
    return Path(store.path) / f"points/a/rows/c/{chunk}/0"


@pytest.fixture(params=[False, True], ids=["threads", "files"])
def device(monkeypatch, request):
    """A device that copies late, in the place of a GPU."""
    made = late.LateCopies()
    module = importlib.import_module("modegap.engine.stream")
    monkeypatch.setattr(module, "_place", lambda name: None if name is None else torch.device("cuda", 0))
    monkeypatch.setattr(module, "CudaCopies", lambda place: made)
    if request.param:
        made.read_files()
    yield made
    made.end()
    assert not threads()
    assert not [t for t in threading.enumerate() if t.name == "reading"]


@pytest.fixture
def no_host_sums(monkeypatch, device):
    """The host sums token columns, no rows."""
    summed = summing.read_summed

    def refuse(descriptor, content, *arguments):
        assert "/tokens/" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        return summed(descriptor, content, *arguments)

    monkeypatch.setattr("modegap.stores.handles.read_summed", refuse)


def threads():
    return [t.name for t in threading.enumerate() if t.name.startswith(("modegap-prefetch", "modegap-read"))]


def rows_of(batches, device=None):
    """All rows that arrive, copied when the device's own work comes to them."""
    found = []
    for batch in batches:
        if device is None:
            found.append(batch.x.cpu().clone())
        else:
            device.compute.add(lambda x=batch.x: found.append(x.clone()))
    if device is not None:
        device.compute.mark().synchronize()
    return torch.cat(found)


def on_host(store, **options):
    return rows_of(stream(store, "a", **({"batch_rows": 10_000} | options)))


@pytest.mark.parametrize(
    ("options", "summed"),
    [
        ({}, 13),
        ({"batch_rows": 7}, 13),
        ({"batch_rows": 48, "readers": 1, "prefetch": 1}, 13),
        ({"start": 20, "stop": 100}, 6),
        ({"start": 40, "stop": 44, "readers": 3}, 1),
    ],
)
@pytest.mark.usefixtures("no_host_sums")
def test_the_device_sums_every_chunk(sound, device, options, summed):
    found = rows_of(stream(sound, "a", device="cuda", **options), device)
    assert device.summed == summed
    assert torch.equal(found, on_host(sound, verify=False, **options))


@pytest.mark.parametrize(
    ("profile", "dtype"), [("sharded", "float16"), ("raw", "float32"), ("sharded", "float32")]
)
@pytest.mark.usefixtures("no_host_sums")
def test_shards_and_float32(tmp_path, device, profile, dtype):
    store = write(tmp_path / "s.zarr", profile, dtype)
    found = rows_of(stream(store, "a", device="cuda"), device)
    assert device.summed == 13
    assert torch.equal(found, on_host(store, verify=False))


@pytest.mark.parametrize(
    ("make", "options", "summed"),
    [
        ({"profile": "archive"}, {}, 0),
        ({"width": 1}, {}, 13),
        ({}, {"samples": [1, 7, 8]}, 0),
        ({}, {"samples": [0, 1, 2, 3, 4], "batch_rows": 32}, 2),
        ({}, {"verify": False}, 0),
        ({"profile": "sharded"}, {"verify": False}, 0),
    ],
)
def test_what_the_device_does_not_sum(tmp_path, device, make, options, summed):
    """Compressed chunks, picked rows and what nobody wants verified; chunks all of whose rows are picked are."""
    store = write(tmp_path / "s.zarr", **make)
    found = rows_of(stream(store, "a", device="cuda", **options), device)
    assert device.summed == summed
    assert torch.equal(found, on_host(store, **options))


def test_a_chunk_of_half_words_and_a_device_without_sums(tmp_path, device, sound):
    plan = StorePlan(
        {"a": PointPlan(3, "tokens", np.full(9, 3))}, [str(i) for i in range(9)], chunk_bytes=6 * 3
    )
    with ActivationStore.create(tmp_path / "odd.zarr", plan).writer() as writer:
        for i in range(9):
            writer.put(i, {"a": SampleRows(np.full((3, 3), i + 0.5))})
    odd = ActivationStore.open(tmp_path / "odd.zarr")
    assert odd.rows("a").chunk_rows % 2 == 1
    assert torch.equal(rows_of(stream(odd, "a", device="cuda"), device), on_host(odd))
    device.sums = False
    assert torch.equal(rows_of(stream(sound, "a", device="cuda"), device), on_host(sound))
    assert device.summed == 0


def flip(store, chunk, byte):
    file = chunk_file(store, chunk)
    content = bytearray(file.read_bytes())
    content[byte] ^= 16
    file.write_bytes(content)


def other_rows(store, chunk):
    """Content and checksum agree with each other, not with the commit record."""
    rows = np.ones(CHUNK * WIDTH, np.float16).tobytes()
    chunk_file(store, chunk).write_bytes(rows + checksum.trailer(checksum.crc32c(rows)))


def other_record(store, chunk):
    """The commit record says another checksum, as one that had its own checksum renewed would."""
    file = Path(store.path) / f"_commit/points/a/rows/{chunk}.json"
    fields = json.loads(file.read_text())
    del fields["check"]
    fields["crc32c"] ^= 1
    file.write_text(json.dumps(fields))


def resize(change):
    def apply(store, chunk):
        content = chunk_file(store, chunk).read_bytes()
        chunk_file(store, chunk).write_bytes(content + b"\0" * change if change > 0 else content[:change])

    return apply


DAMAGE = {
    "first bit": lambda store, chunk: flip(store, chunk, 0),
    "last bit": lambda store, chunk: flip(store, chunk, CHUNK * WIDTH * 2 - 1),
    "checksum": lambda store, chunk: flip(store, chunk, CHUNK * WIDTH * 2),
    "record": other_record,
    "other rows": other_rows,
    "no checksum": resize(-4),
    "half a checksum": resize(-2),
    "few rows": resize(-300),
    "empty": lambda store, chunk: chunk_file(store, chunk).write_bytes(b""),
    "too long": resize(1),
    "missing": lambda store, chunk: chunk_file(store, chunk).unlink(),
    "a folder": lambda store, chunk: (chunk_file(store, chunk).unlink(), chunk_file(store, chunk).mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_said_as_on_the_host(copy, device, damage):
    DAMAGE[damage](copy, 7)
    copy = ActivationStore.open(copy.path)
    with pytest.raises(DamagedChunkError) as on_the_host:
        copy.rows("a").chunk(7)
    seen = []
    with pytest.raises(DamagedChunkError) as found:
        seen.extend(batch.end for batch in stream(copy, "a", device="cuda", batch_rows=CHUNK))
    assert str(found.value) == str(on_the_host.value)
    assert seen == [CHUNK * k for k in range(1, 8)]


def test_padding_is_verified_too(copy, device):
    flip(copy, 12, CHUNK * WIDTH * 2 - 1)
    with pytest.raises(DamagedChunkError, match=r"chunk 12 .*rows 192 to 199"):
        list(stream(copy, "a", device="cuda", start=192, stop=193))


def test_damage_in_a_shard(tmp_path, device):
    store = write(tmp_path / "s.zarr", "sharded")
    file = chunk_file(store, 1)
    content = bytearray(file.read_bytes())
    content[2 * (CHUNK * WIDTH * 2 + 4) + 9] ^= 1  # of the shard's third chunk
    file.write_bytes(content)
    with pytest.raises(DamagedChunkError) as on_the_host:
        store.rows("a").chunk(6)
    with pytest.raises(DamagedChunkError) as found:
        list(stream(store, "a", device="cuda"))
    assert str(found.value) == str(on_the_host.value)
    content[-3] ^= 1  # and its index
    file.write_bytes(content)
    with pytest.raises(DamagedChunkError, match="index of its shard"):
        list(stream(ActivationStore.open(store.path), "a", device="cuda"))


def test_what_is_deleted_meanwhile(copy, device):
    batches = stream(copy, "a", device="cuda", batch_rows=CHUNK, prefetch=1, readers=1)
    next(batches)
    chunk_file(copy, 9).unlink()
    with pytest.raises(DamagedChunkError, match=r"chunk 9 .* its file is missing"):
        list(batches)
    batches = stream(copy, "a", device="cuda", batch_rows=CHUNK, prefetch=1, readers=1)
    next(batches)
    shutil.rmtree(copy.path)
    with pytest.raises(StoreError, match="deleted or moved"):
        list(batches)


def test_rows_that_are_not_committed(tmp_path, device):
    store = write(tmp_path / "s.zarr", samples=12)
    done = store.rows("a").n_valid_rows
    assert done % CHUNK > 0
    assert torch.equal(rows_of(stream(store, "a", device="cuda"), device), on_host(store))
    with pytest.raises(NotCommittedError):
        list(stream(store, "a", device="cuda", stop=done + CHUNK))


def test_a_mistake_of_the_transfer_is_mended(sound, device):
    """One bit changes on the way, once: the chunk is read again on the host, and sent and summed again."""
    spoilt = []

    def spoil(target):
        if len(spoilt) < 3:
            spoilt.append(1)
            target.view(torch.int16)[-1, -1] ^= 1

    device.spoil = spoil
    found = rows_of(stream(sound, "a", device="cuda", batch_rows=32, start=3), device)
    assert len(spoilt) >= 3
    assert torch.equal(found, on_host(sound, start=3))


def test_a_transfer_that_always_fails_is_an_error(sound, device):
    device.spoil = lambda target: target.view(torch.int16)[0, 0].bitwise_xor_(1)
    with pytest.raises(EngineError, match="change on their way to the GPU"):
        list(stream(sound, "a", device="cuda"))


@pytest.mark.parametrize("batches_read", [0, 1, 4])
def test_leaving_early(sound, device, batches_read):
    batches = stream(sound, "a", device="cuda", batch_rows=CHUNK)
    for _ in range(batches_read):
        next(batches)
    batches.close()
    assert not threads()
    assert device.finished == device.empty_made


def test_leaving_while_sums_are_under_way(sound, device):
    device.spoil = lambda target: time.sleep(0.01)
    batches = stream(sound, "a", device="cuda", batch_rows=CHUNK, readers=4)
    next(batches)
    batches.close()
    assert not threads()


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def on_gpu(function):
    for mark in GPU:
        function = mark(function)
    return function


@pytest.fixture
def large(tmp_path):
    """Chunks of 16 MiB less a row, in several pieces; the last one is not full."""
    width, samples = 4096, 21
    plan = StorePlan({"a": PointPlan(width, "tokens", np.full(samples, 500))}, [str(i) for i in range(samples)],
                     chunk_bytes=(16 << 20) - 2 * width)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with ActivationStore.create(tmp_path / "large.zarr", plan).writer() as writer:
        for i in range(samples):
            writer.put(i, {"a": SampleRows(torch.randn(500, width, generator=generator).half().numpy())})
    return ActivationStore.open(tmp_path / "large.zarr")


@on_gpu
@pytest.mark.parametrize(
    "options", [{}, {"verify": False}, {"batch_rows": 100}, {"start": 700, "stop": 9000}]
)
def test_rows_on_a_gpu(large, options):
    from modegap.kernels import last_path

    wanted = on_host(large, **options)
    found = rows_of(stream(large, "a", device="cuda", **options))
    assert torch.equal(found, wanted)
    if options.get("verify", True):
        assert last_path("crc32c").name == "triton"


@on_gpu
@pytest.mark.parametrize(
    "byte", [0, 3 << 20, 8_000_001, (16 << 20) - 2 * 4096 - 1, (16 << 20) - 2 * 4096 + 2]
)
def test_a_flipped_bit_is_found_on_a_gpu(large, byte):
    flip(large, 3, byte)
    with pytest.raises(DamagedChunkError) as on_the_host:
        large.rows("a").chunk(3)
    seen = []
    rows = large.rows("a").chunk_rows
    with pytest.raises(DamagedChunkError) as found:
        seen.extend(batch.end for batch in stream(large, "a", device="cuda", batch_rows=rows))
    assert str(found.value) == str(on_the_host.value)
    assert seen == [rows, 2 * rows, 3 * rows]
    assert not threads()


@on_gpu
def test_leaving_early_on_a_gpu(large):
    batches = stream(large, "a", device="cuda", batch_rows=2000)
    next(batches)
    batches.close()
    assert not threads()
