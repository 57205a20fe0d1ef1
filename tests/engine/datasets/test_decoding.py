"""Media decoded in worker processes: order, bounds, errors, shutdown."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modegap.engine.datasets import (
    Dataset,
    ListDataset,
    MediaError,
    Sample,
    as_text,
    attempted,
    dataset,
    decoded,
    default_workers,
)
from modegap.engine.datasets.transfer import Slots
from modegap.engine.errors import EngineError

# Gone with their parent, workers need a moment; this machine may be slow.
PATIENCE = 200.0


@pytest.fixture
def pictures(picture: Callable[..., Path], tmp_path: Path) -> Dataset:
    for i in range(12):
        picture(tmp_path / "pictures" / f"{i:02d}.png", value=i * 10)
    return dataset(tmp_path / "pictures")


def reds(pairs: Iterator[tuple[int, Sample]]) -> list[tuple[int, int]]:
    return [(index, sample.media.getpixel((0, 0))[0]) for index, sample in pairs]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_come_in_the_order_asked_for(pictures: Dataset, workers: int) -> None:
    assert reds(decoded(pictures, workers=workers)) == [(i, i * 10) for i in range(12)]
    some = [7, 0, 7, 11, 3]
    assert reds(decoded(pictures, some, workers=workers, ahead=2)) == [(i, i * 10) for i in some]
    assert list(decoded(pictures, [], workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_media_name_the_sample_and_the_rest_follow(
    pictures: Dataset, workers: int, tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "01.png").write_bytes(b"no image")
    (tmp_path / "pictures" / "04.png").unlink()
    found = dict(attempted(pictures, range(6), workers=workers))
    assert list(found) == [0, 1, 2, 3, 4, 5]
    bad = {index: outcome for index, outcome in found.items() if isinstance(outcome, MediaError)}
    assert {index: outcome.sample for index, outcome in bad.items()} == {1: "01.png", 4: "04.png"}
    assert bad[4].reason == "the file does not exist"
    assert bad[4].file == str(tmp_path / "pictures" / "04.png")
    with pytest.raises(
        MediaError, match=r"cannot decode .*01\.png of sample '01\.png' .*replace the file"
    ) as caught:
        list(decoded(pictures, workers=workers))
    assert "\n" not in str(caught.value)


def test_resampling_happens_where_decoding_does(sound: Callable[..., Path], tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", seconds=0.5, rate=44100)
    data = dataset(tmp_path)
    for workers in (0, 1):
        ((_, sample),) = decoded(data, rate=16000, workers=workers)
        wave, rate = sample.media
        assert (rate, len(wave), wave.dtype) == (16000, 8000, np.float32)
        true = 0.25 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
        assert np.abs(wave - true)[400:-400].max() < 1e-4


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A data set whose module worker processes can import too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return import_module("counted_dataset").Counted


def test_no_more_is_decoded_than_asked_for_ahead(counted: Any, tmp_path: Path) -> None:
    stream = decoded(counted(tmp_path, 100), [0, 1, 2, 3, 4, 8, 9, 10, 11], workers=1, ahead=3)
    assert next(stream)[0] == 0
    time.sleep(0.5)
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1", "2"}
    assert next(stream)[0] == 1
    stream.close()
    assert {path.name for path in tmp_path.iterdir()} <= {"0", "1", "2", "3"}


def test_errors_of_other_data_sets(counted: Any, tmp_path: Path) -> None:
    for workers in (0, 1):
        with pytest.raises(MediaError, match=r"cannot use sample '5' \(KeyError: 'five'\)"):
            list(decoded(counted(tmp_path, 6), workers=workers))
    with pytest.raises(EngineError, match="a decoding worker of data set counted ended abruptly"):
        list(decoded(counted(tmp_path, 9), [7, 8], workers=1))
    local = counted(tmp_path, 3)
    local.ids = (str(i) for i in range(3))  # a generator cannot be pickled
    with pytest.raises(EngineError, match=r"cannot be sent to workers .*workers=0"):
        list(decoded(local, [0], workers=1))
    for wrong in ({"workers": -1}, {"ahead": 0}):
        with pytest.raises(ValueError, match="expected at least 0 and 1"):
            list(decoded(local, [0], **wrong))


def test_nothing_to_decode_needs_no_workers(pictures: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modegap.engine.datasets.decoding.ProcessPoolExecutor", None)
    assert [sample.id for _, sample in decoded(as_text(pictures), [1, 0], workers=4)] == ["01.png", "00.png"]
    assert len(list(decoded(ListDataset([Sample("a", "x", "media")]), workers=4))) == 1


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test alone in the place of shared memory."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr("modegap.engine.datasets.transfer.SHARED_MEMORY", tmp_path / "shared")
    return tmp_path / "shared"


def test_media_cross_unchanged_and_leave_nothing(
    pictures: Dataset, counted: Any, shared: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "00.png")
    stream = decoded(pictures, [0, 1, 0], workers=1, ahead=1)
    _, first = next(stream)
    assert len(list(shared.glob("modegap-*/*"))) == 1
    (_, second), (_, third) = stream
    for sample in (first, third):  # the slot was overwritten twice since the first came
        assert sample.media.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(sample.media), noise)
    assert second.media.size == (8, 6)
    assert list(shared.iterdir()) == []
    (_, other), *_ = decoded(counted(tmp_path, 1), workers=1)
    assert other == Sample("0", "", "media")


def test_full_shared_memory_is_done_without(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots.made()
    sample = Sample("a", "t", (np.arange(5, dtype=np.float32), 16000), None, {"k": 1})
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    parcel = slots.put(0, sample)
    assert parcel.inline == (sample.media[0].tobytes(),)
    found = slots.take(0, pickle.loads(pickle.dumps(parcel)))
    np.testing.assert_array_equal(found.media[0], sample.media[0])
    assert (found.id, found.labels) == ("a", {"k": 1})
    slots.remove()
    slots.remove()
    assert not Path(slots.folder).exists()


def test_default_workers_leave_a_core() -> None:
    assert 0 <= default_workers() <= min(8, len(os.sched_getaffinity(0)) - 1)


# A shell lets its background jobs ignore SIGINT, and they hand that on to what they start.
SCRIPT = """
import signal, sys, time
from pathlib import Path
from modegap.engine.datasets import dataset, decoded, transfer

def main():
    data = dataset(sys.argv[1])
    transfer.SHARED_MEMORY = Path(sys.argv[2])
    for index, sample in decoded(data, list(range(12)) * 1000, workers=2):
        if index == 11:
            print("running", flush=True)
            time.sleep(0.01)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def _group(leader: int) -> list[int]:
    """Live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(
    pictures: Dataset, how: signal.Signals, shared: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "pictures", shared],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        assert len(_group(process.pid)) >= 3
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as the terminal does: to the whole group
        else:
            os.kill(process.pid, how)
        out, err = process.communicate(timeout=PATIENCE)
    if how is signal.SIGINT:
        assert (process.returncode, out.splitlines()[-1], err) == (0, "interrupted", "")
    deadline = time.monotonic() + PATIENCE
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _group(process.pid) == []
    while list(shared.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(shared.iterdir()) == []
