"""One pass through a store: result, certificate, and going on after a kill."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from modegap.engine.errors import EngineError
from modegap.engine.moments import ClassMoments, Moments
from modegap.engine.reduce import reduce
from modegap.engine.reduction_checks import numbers
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

WIDTH, SAMPLES, LENGTH = 48, 60, 50


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("reduce") / "s.zarr"
    plan = StorePlan(
        points={
            "a": PointPlan(WIDTH, "both", np.full(SAMPLES, LENGTH)),
            "p": PointPlan(6, "pooled"),
        },
        sample_ids=[str(i) for i in range(SAMPLES)],
        chunk_bytes=WIDTH * 2 * 64,
    )
    rng = np.random.default_rng(0)
    with ActivationStore.create(path, plan).writer() as writer:
        for i in range(SAMPLES):
            x = rng.standard_normal((LENGTH, WIDTH)) + 5 * (i % 3)
            columns = {"a": (np.zeros(LENGTH, np.int32), np.full(LENGTH, 1 + i % 2, np.uint8))}
            writer.put(i, {"a": SampleRows(x, x.mean(0)), "p": SampleRows(pooled=x[0, :6])}, columns)
    return ActivationStore.open(path)


def same_bits(one, two):
    one, two = numbers(one), numbers(two)
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k], equal_nan=True) for k in one)


def test_result_and_certificate(store):
    seen = []
    result = reduce(store, "a", Moments("exact"), progress=lambda *done: seen.append(done))
    x = store.rows("a").read(0, SAMPLES * LENGTH).astype(np.float64)
    np.testing.assert_allclose(result.covariance, np.cov(x.T), rtol=1e-11, atol=1e-12)
    certificate = result.certificate
    assert (certificate.mode, certificate.count, certificate.width) == ("exact", len(x), WIDTH)
    assert certificate.store_hashes == {"store": store.content_hash()}
    assert seen[-1][:2] == (len(x), len(x))


def test_the_kind_follows_the_store(store):
    assert reduce(store, "p", Moments()).count == SAMPLES
    assert reduce(store, "a", Moments()).count == SAMPLES * LENGTH
    assert reduce(store, "a", Moments(), kind="pooled").count == SAMPLES


def test_selections_and_classes(store):
    labels = np.arange(SAMPLES) % 3
    result = reduce(store, "a", ClassMoments(labels, 3), select="image", samples=range(30))
    x = store.rows("a").read(0, SAMPLES * LENGTH).astype(np.float64)
    sample = np.repeat(np.arange(SAMPLES), LENGTH)
    kept = (sample % 2 == 1) & (sample < 30)
    assert result.count == kept.sum()
    for c in range(3):
        want = x[kept & (labels[sample] == c)].mean(0)
        np.testing.assert_allclose(result.class_mean[c], want, atol=1e-5)


def test_a_tuple_of_results_is_certified_throughout(store):
    class Twice(Moments):
        def finalize(self):
            return super().finalize(), 7

    result, other = reduce(store, "a", Twice())
    assert other == 7
    assert result.certificate.store_hashes == {"store": store.content_hash()}


class Interrupted(Moments):
    """Raises after some batches, as a kill would."""

    batches = 9

    def update(self, batch):
        super().update(batch)
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt


def test_a_checkpoint_goes_on_bit_for_bit(store, tmp_path):
    file = tmp_path / "state.safetensors"
    whole = reduce(store, "a", Moments(block_rows=100), batch_rows=64)
    broken = Interrupted(block_rows=100)
    with pytest.raises(KeyboardInterrupt):
        reduce(store, "a", broken, batch_rows=64, checkpoint=file, checkpoint_seconds=0)
    assert file.exists()
    assert list(tmp_path.iterdir()) == [file]
    read = []
    resumed = Interrupted(block_rows=100)
    resumed.batches = -1
    result = reduce(
        store,
        "a",
        resumed,
        batch_rows=64,
        checkpoint=file,
        checkpoint_seconds=0,
        progress=lambda rows, total, _: read.append((rows, total)),
    )
    assert read[-1] == (SAMPLES * LENGTH - 8 * 64,) * 2
    assert same_bits(result, whole)
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "pooled"}, "kind, rows differ"),
        ({"select": "text"}, "select differ"),
        ({"samples": [1]}, "samples differ"),
        ({"stop": 100}, "rows differ"),
    ],
)
def test_a_checkpoint_of_another_pass_is_refused(store, tmp_path, changes, message):
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        reduce(store, "a", Interrupted(), batch_rows=64, checkpoint=file, checkpoint_seconds=0)
    with pytest.raises(EngineError, match=message):
        reduce(store, "a", Interrupted(), checkpoint=file, **changes)
    with pytest.raises(EngineError, match="reduction differ"):
        reduce(store, "a", Moments(), checkpoint=file)


def test_a_file_that_is_no_checkpoint_is_refused(store, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "state"
    file.write_bytes(b"garbage")
    with pytest.raises(EngineError, match="cannot be read as a checkpoint"):
        reduce(store, "a", Moments(), checkpoint=file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(EngineError, match="not a checkpoint"):
        reduce(store, "a", Moments(), checkpoint=file)


_KILLED = """
import os, signal, sys
from modegap.engine.moments import Moments
from modegap.engine.reduce import reduce
from modegap.stores import ActivationStore

class Killed(Moments):
    seen = 0
    def update(self, batch):
        super().update(batch)
        self.seen += 1
        if self.seen == 20:
            os.kill(os.getpid(), signal.SIGKILL)

Killed.__qualname__ = "Moments"
reduce(ActivationStore.open(sys.argv[1]), "a", Killed(), batch_rows=64, checkpoint=sys.argv[2], checkpoint_seconds=0)
"""


def test_a_killed_process_goes_on(store, tmp_path):
    file = tmp_path / "state"
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(store.path), str(file)], check=False)
    assert killed.returncode == -signal.SIGKILL
    read = []
    result = reduce(
        store, "a", Moments(), batch_rows=64, checkpoint=file, progress=lambda *done: read.append(done)
    )
    assert read[-1][0] == SAMPLES * LENGTH - 19 * 64
    assert same_bits(result, reduce(store, "a", Moments(), batch_rows=64))
