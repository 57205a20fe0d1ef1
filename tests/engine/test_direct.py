"""Rows that native threads read to a device: on a double that lags, KvikIO's side on a double of KvikIO."""

import importlib
import runpy
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine import files as files_module
from modegap.engine.files import KvikFiles, kvik_files
from modegap.engine.machine import PROCESSES, processes_here
from modegap.engine.stream import stream
from modegap.kernels import absmax
from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    NotCommittedError,
    PointPlan,
    RowArray,
    SampleRows,
    StorePlan,
)

late = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("late_device.py"))))
sums = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_stream_sums.py"))))

CHUNK, ROWS = sums.CHUNK, sums.ROWS


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return sums.write(tmp_path_factory.mktemp("direct") / "s.zarr")


@pytest.fixture
def device(monkeypatch):
    made = late.LateCopies()
    made.read_files()
    module = importlib.import_module("modegap.engine.stream")
    monkeypatch.setattr(module, "_place", lambda name: None if name is None else torch.device("cuda", 0))
    monkeypatch.setattr(module, "CudaCopies", lambda place: made)
    yield made
    made.end()
    assert not [t for t in threading.enumerate() if t.name == "reading"]


@pytest.mark.parametrize("options", [{}, {"batch_rows": 48}, {"batch_rows": 5}, {"start": 21, "stop": 90}])
@pytest.mark.usefixtures("device")
def test_magnitudes_come_with_the_batches(store, options):
    for batch in stream(store, "a", device="cuda", **options):
        assert torch.equal(batch.magnitudes.channels, absmax(batch.x))
        assert torch.equal(batch.magnitudes.host, absmax(batch.x))


@pytest.mark.usefixtures("device")
def test_of_many_small_batches_nobody_looks_for_magnitudes(store):
    batches = list(stream(store, "a", device="cuda", batch_rows=3, stop=CHUNK))
    assert len(batches) == 6
    assert all(batch.magnitudes is None for batch in batches)


def test_no_thread_of_python_reads(store, device):
    batches = stream(store, "a", device="cuda", batch_rows=CHUNK, readers=5)
    next(batches)
    assert not sums.threads()
    assert device.from_files.threads == 5
    batches.close()


def test_a_slot_is_read_into_when_its_last_work_is_done(store, device):
    """Two slots, work that lags: rows would change under it."""
    found = sums.rows_of(stream(store, "a", device="cuda", batch_rows=CHUNK, prefetch=1), device)
    assert torch.equal(found, sums.on_host(store))
    assert device.from_files.asked == 13
    assert device.empty_made == 2
    assert device.pinned_made == 0


@pytest.mark.parametrize("failing", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_rows", [None, CHUNK, 48])
def test_what_cannot_be_read_so_the_host_reads(store, device, failing, batch_rows):
    device.from_files.failing = failing
    found = sums.rows_of(stream(store, "a", device="cuda", batch_rows=batch_rows), device)
    assert torch.equal(found, sums.on_host(store))
    assert device.pinned_made <= 2


def test_an_error_comes_in_its_place(store, tmp_path, device):
    copy = sums.write(tmp_path / "s.zarr", samples=12)
    done = copy.rows("a").n_valid_rows
    with pytest.raises(NotCommittedError):
        list(stream(copy, "a", device="cuda", stop=done + CHUNK, batch_rows=CHUNK))
    device.from_files.failing = 2
    sums.chunk_file(copy, 3).unlink()
    seen = []
    with pytest.raises(DamagedChunkError, match=r"chunk 3 .* its file is missing"):
        seen.extend(b.end for b in stream(copy, "a", device="cuda", batch_rows=CHUNK, prefetch=6))
    assert seen == [CHUNK, 2 * CHUNK, 3 * CHUNK]


def test_an_interrupt_waits_for_what_is_under_way(store, device, monkeypatch):
    """Memory that is still written to may not be given up."""
    asked = []
    read = device.from_files.read

    def interrupted(*arguments):
        asked.append(read(*arguments))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return asked[-1]

    monkeypatch.setattr(device.from_files, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream(store, "a", device="cuda", batch_rows=4 * CHUNK))
    asked[2].ended()
    assert all(reading.done() for reading in asked)


@pytest.mark.usefixtures("device")
def test_a_consumer_in_inference_mode_gets_ordinary_tensors(store):
    with torch.inference_mode():
        batches = list(stream(store, "a", device="cuda"))
    assert not any(batch.x.is_inference() for batch in batches)
    assert not any(batch.magnitudes.channels.is_inference() for batch in batches)


def test_an_interrupted_wait_is_taken_up_again(store, device, monkeypatch):
    ended = late.LateReading.ended
    times = []

    def interrupted(reading):
        times.append(reading)
        if len(times) == 2:
            raise KeyboardInterrupt
        return ended(reading)

    monkeypatch.setattr(late.LateReading, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream(store, "a", device="cuda", batch_rows=4 * CHUNK))
    assert times[1] in times[2:]
    assert all(reading.done() for reading in times)


def test_an_error_of_the_columns_waits_for_what_is_under_way(store, device, monkeypatch):
    asked = []
    read = device.from_files.read
    monkeypatch.setattr(device.from_files, "read", lambda *given: asked.append(read(*given)) or asked[-1])

    def broken(rows, start, stop):
        raise OSError("no positions")

    monkeypatch.setattr(RowArray, "position", broken)
    with pytest.raises(OSError, match="no positions"):
        list(stream(store, "a", device="cuda"))
    assert asked
    assert all(reading.done() for reading in asked)


class FakeFuture:
    def __init__(self, result):
        self.result = result

    def done(self):
        return True

    def get(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class FakeFile:
    """Reads at once; ends early like KvikIO's, with an error."""

    opened = closed = asked = 0

    def __init__(self, path, flags):
        assert flags == "r"
        try:
            self.content = Path(path).read_bytes()
        except OSError as error:
            raise RuntimeError(str(error)) from error
        type(self).opened += 1

    def pread(self, target, size, offset, task_size):
        type(self).asked = task_size
        part = self.content[offset : offset + size]
        if len(part) < size:
            return FakeFuture(RuntimeError("POSIX error on pread: EOF"))
        target.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(part), dtype=torch.uint8))
        return FakeFuture(size)

    def close(self):
        type(self).closed += 1


@pytest.fixture
def kvikio(monkeypatch):
    settings = {"num_threads": 1, "bounce_buffer_size": 16 << 20, "compat_mode": "auto"}
    module, defaults = ModuleType("kvikio"), ModuleType("kvikio.defaults")
    defaults.get, defaults.set = settings.get, settings.__setitem__
    FakeFile.opened = FakeFile.closed = 0
    module.defaults, module.CuFile, module.settings = defaults, FakeFile, settings
    module.CompatMode = SimpleNamespace(ON="on")
    monkeypatch.setattr(files_module, "_GDS_DRIVER", Path("/none"))
    monkeypatch.setitem(sys.modules, "kvikio", module)
    monkeypatch.setitem(sys.modules, "kvikio.defaults", defaults)
    monkeypatch.setattr(files_module.importlib.util, "find_spec", lambda name: name)
    names = (
        "KVIKIO_NTHREADS",
        "KVIKIO_BOUNCE_BUFFER_SIZE",
        "KVIKIO_COMPAT_MODE",
        PROCESSES,
        "LOCAL_WORLD_SIZE",
    )
    for name in names:
        monkeypatch.delenv(name, raising=False)
    return module


def test_settings_of_kvikio(kvikio, monkeypatch):
    assert isinstance(kvik_files(6), KvikFiles)
    assert kvikio.settings["num_threads"] == 6
    piece = kvikio.settings["bounce_buffer_size"]
    assert piece < 16 << 20
    kvik_files(3)  # others may be reading with six
    assert kvikio.settings["num_threads"] == 6
    kvikio.settings["bounce_buffer_size"] = 1 << 20
    monkeypatch.setenv("KVIKIO_NTHREADS", "6")
    monkeypatch.setenv("KVIKIO_BOUNCE_BUFFER_SIZE", str(1 << 20))
    kvik_files(9)
    assert kvikio.settings == {"num_threads": 6, "bounce_buffer_size": 1 << 20, "compat_mode": "on"}


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", PROCESSES])
def test_processes_that_share_a_machine_read_smaller_pieces(kvikio, monkeypatch, tmp_path, name):
    kvik_files(2)
    alone = kvikio.settings["bounce_buffer_size"]
    monkeypatch.setenv(name, "1")
    kvik_files(2)
    assert kvikio.settings["bounce_buffer_size"] == alone
    monkeypatch.setenv(name, "2")
    reader = kvik_files(2)
    assert kvikio.settings["bounce_buffer_size"] == alone // 2
    (tmp_path / "file").write_bytes(bytes(16))
    assert reader.read(str(tmp_path / "file"), 0, torch.zeros(8, dtype=torch.float16)).ended()
    assert FakeFile.asked == alone // 2


@pytest.mark.parametrize("said", ["0", "-2", "two", "", "²"])
def test_a_number_of_processes_that_is_none(monkeypatch, said):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv(PROCESSES, said)
    with pytest.raises(ValueError, match=f"{PROCESSES}: got '{said}', expected the number of processes"):
        processes_here()


def test_gpudirect_storage_is_left_to_kvikio_where_its_driver_is(kvikio, monkeypatch, tmp_path):
    monkeypatch.setenv("KVIKIO_COMPAT_MODE", "OFF")
    kvik_files(2)
    monkeypatch.delenv("KVIKIO_COMPAT_MODE")
    monkeypatch.setattr(files_module, "_GDS_DRIVER", tmp_path)
    kvik_files(2)
    assert kvikio.settings["compat_mode"] == "auto"
    monkeypatch.setattr(files_module, "_GDS_DRIVER", tmp_path / "none")
    kvik_files(2)
    assert kvikio.settings["compat_mode"] == "on"


def test_without_kvikio(kvikio, monkeypatch):
    monkeypatch.setitem(sys.modules, "kvikio", None)  # import raises
    assert kvik_files(2) is None
    monkeypatch.setattr(files_module.importlib.util, "find_spec", lambda name: None)
    assert kvik_files(2) is None


def test_a_kvikio_whose_libraries_are_missing(tmp_path, monkeypatch):
    (tmp_path / "kvikio").mkdir()
    (tmp_path / "kvikio/__init__.py").write_text("raise RuntimeError('Failure finding libcufile.so.0')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kvikio", raising=False)
    assert kvik_files(2) is None


def test_a_stream_through_kvikio(kvikio, store, device):
    device.from_files = kvik_files(2)
    found = sums.rows_of(stream(store, "a", device="cuda"), device)
    assert torch.equal(found, sums.on_host(store))
    assert FakeFile.opened == FakeFile.closed == 13


def test_files_that_kvikio_cannot_read(kvikio, tmp_path):
    reader = kvik_files(2)
    target = torch.zeros(8, dtype=torch.float16)
    assert reader.read(str(tmp_path / "none"), 0, target) is None
    (tmp_path / "short").write_bytes(bytes(range(20)))
    reading = reader.read(str(tmp_path / "short"), 8, target)
    assert reading.done()
    assert reading.ended() is False
    reading = reader.read(str(tmp_path / "short"), 4, target)
    assert reading.ended() is True
    assert target.view(torch.uint8).tolist() == list(range(4, 20))
    assert FakeFile.opened == FakeFile.closed == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_kvikio_on_a_gpu(tmp_path):
    """17 chunks of 16 MiB, verified and not; the reductions that use the magnitudes see what they see without."""
    pytest.importorskip("kvikio", reason="needs KvikIO")
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce

    width, samples = 4096, 17
    plan = StorePlan(
        {"a": PointPlan(width, "tokens", np.full(samples, 2048))}, [str(i) for i in range(samples)]
    )
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2048 * samples, width, generator=generator).half()
    with ActivationStore.create(tmp_path / "s.zarr", plan).writer() as writer:
        for i in range(samples):
            writer.put(i, {"a": SampleRows(rows[2048 * i : 2048 * (i + 1)].numpy())})
    store = ActivationStore.open(tmp_path / "s.zarr")
    for verify in (True, False):
        batches = stream(store, "a", device="cuda", verify=verify)
        first = next(batches)
        assert not sums.threads()
        found = [first.x.cpu()]
        assert torch.equal(first.magnitudes.host, absmax(found[0]))
        found += [batch.x.cpu() for batch in batches]
        assert torch.equal(torch.cat(found), rows)
    with_them = reduce(store, "a", Moments(), device="cuda")
    without = Moments()
    for batch in stream(store, "a", device="cuda", batch_rows=400):
        assert batch.magnitudes is None  # too many of them in a buffer
        without.update(batch)
    assert torch.equal(with_them.covariance, without.finalize().covariance)
