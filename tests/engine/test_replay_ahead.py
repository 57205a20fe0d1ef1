"""Rows are read while the batch before is computed; whatever goes wrong there is met where the rows are used."""

from __future__ import annotations

import runpy
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset
from modegap.engine.replay import Replay, open_source
from modegap.engine.replay.ahead import read_ahead
from modegap.stores import StoreError

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))
N = 7


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = tiny.llava()
    config = ExtractConfig(
        "m", "d", str(tmp_path_factory.mktemp("s") / "a"), ("adapter_output",), rows="tokens"
    )
    store = extract(config, model=loaded, data=ListDataset(tiny.image_samples(N)))
    return loaded, open_source(loaded, store)


class Reads:
    """A source's rows, with who read them."""

    def __init__(self, source: Any) -> None:
        self.rows, self.seen, self.bad = source.rows, [], {}
        self.source = replace(source, rows=self.read)

    def read(self, item: Any) -> torch.Tensor:
        ours = threading.current_thread() is threading.main_thread()
        self.seen.append((item.index, ours))
        error = self.bad.get((item.index, ours)) or self.bad.get(item.index)
        if error is not None:
            raise error
        return self.rows(item)


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("modegap-replay")]


def test_the_next_batch_is_read_while_one_is_in_use() -> None:
    read = {number: threading.Event() for number in range(6)}

    def rows(number: int) -> torch.Tensor:
        read[number].set()
        return torch.full((1,), float(number))

    batches = [[0, 1], [2, 3], [3, 4, 4], [5]]
    coming = read_ahead(batches, rows, pin=False)
    assert list(next(coming)) == [0, 1]
    assert read[3].wait(20)
    assert not read[4].is_set()  # one batch, not all of them
    assert list(next(coming)) == [2, 3]
    assert list(next(coming)) == [4]  # 3 was in the batch before
    assert reading()
    coming.close()
    assert not reading()
    assert list(read_ahead([], rows, pin=False)) == []


def test_every_sample_is_read_once_and_ahead(case: Any) -> None:
    loaded, source = case
    reads = Reads(source)
    replay = Replay(loaded, reads.source, batch_size=3)
    found = replay.losses([None, lambda z, owner: z * 1.01])
    assert sorted(reads.seen) == [(i, False) for i in range(N)]
    assert not reading()
    plain = Replay(loaded, source, batch_size=1).losses([None])
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-4)


def test_a_reading_error_comes_with_its_batch(case: Any) -> None:
    loaded, source = case
    reads = Reads(source)
    replay = Replay(loaded, reads.source, batch_size=2)
    bad = source.items[replay.order[3]].index
    reads.bad = {bad: StoreError("chunk 3 is damaged")}
    done = []
    with pytest.raises(StoreError, match="chunk 3"):  # noqa: PT012  # what came before it is kept
        for members, _ in replay.gradients(lambda batch: None):
            done += members
    assert done == replay.order[:2]
    assert not reading()


def test_what_only_the_thread_could_not_read_is_read_again(case: Any) -> None:
    loaded, source = case
    reads = Reads(source)
    replay = Replay(loaded, reads.source, batch_size=3)
    reads.bad = {(source.items[replay.order[4]].index, False): MemoryError("no page-locked memory")}
    found = replay.losses()
    assert sum(ours for _, ours in reads.seen) == 2  # it and the one behind it
    assert np.isfinite(found).all()
    assert not replay.retried


def test_memory_errors_still_halve_the_batch(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, source = case
    expected = Replay(loaded, source, batch_size=1).losses()
    reads = Reads(source)
    replay = Replay(loaded, reads.source, batch_size=4)
    pack = replay.decoder.pack

    def small(items: Any, z: Any, **more: Any) -> Any:
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pack(items, z, **more)

    monkeypatch.setattr(replay.decoder, "pack", small)
    np.testing.assert_allclose(replay.losses(), expected, rtol=1e-4)
    assert [size for _, size in replay.retried] == [2]
    assert sorted(reads.seen) == [(i, False) for i in range(N)]  # the smaller batches take what is there


def test_a_pass_that_is_given_up_leaves_no_thread(case: Any) -> None:
    loaded, source = case
    replay = Replay(loaded, source, batch_size=2)
    passing = replay.gradients(lambda batch: None)
    next(passing)
    passing.close()
    assert not reading()
    assert not replay._ahead
