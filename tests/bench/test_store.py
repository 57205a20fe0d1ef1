"""The store's benchmarks: samples are chosen by who disturbed them, and both scripts run through."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bench import store_cases, store_gpu, store_io, undisturbed


def test_disturbed_samples_do_not_count(monkeypatch):
    """Whatever they took: here the disturbed ones are the fast ones."""
    samples = iter(
        [undisturbed.Sample(1.0, 1.0, 10**9, 0.0)]
        + [
            undisturbed.Sample(wall, wall, 10**9, others)
            for wall, others in [
                (0.1, 0.9),
                (2.0, 0.0),
                (0.1, 0.5),
                (4.0, 0.05),
                (0.1, 0.2),
                (3.0, 0.0),
                (9.0, 9.0),
            ]
        ]
    )
    monkeypatch.setattr(undisturbed, "timed", lambda work: next(samples))
    found = undisturbed.measure({"a": undisturbed.Work(lambda: 0)}, rounds=3, seconds=60)["a"]
    assert found["samples"] == 6
    assert found["wall_gbps"] == pytest.approx(1 / 3)
    assert (found["slowest_gbps"], found["fastest_gbps"]) == (0.25, 0.5)
    assert found["others"] == 0.05


def test_a_busy_machine_ends_the_measurement(monkeypatch):
    taken = []
    monkeypatch.setattr(
        undisturbed, "timed", lambda work: taken.append(1) or undisturbed.Sample(1.0, 1.0, 10**9, 5.0)
    )
    found = undisturbed.measure({"a": undisturbed.Work(lambda: 0)}, rounds=3, seconds=0)["a"]
    assert len(taken) == 4
    assert found["others"] == 5.0


def test_what_counts_as_others(monkeypatch, tmp_path):
    """User, nice, system, interrupts and steal, without idle, without the kernel's threads and this process."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 10 500 90000 700 20 30 40 0 0\ncpu0 1 2 3\n")
    monkeypatch.setattr(undisturbed, "Path", lambda *parts: stat)
    monkeypatch.setattr(undisturbed, "_TICK", 0.01)
    monkeypatch.setattr(undisturbed, "_kernel_ticks", lambda: 100)
    monkeypatch.setattr(undisturbed.os, "times", lambda: SimpleNamespace(
        user=2.0, system=1.0, children_user=0.25, children_system=0.25
    ))  # fmt: skip
    assert undisturbed.others_seconds() == pytest.approx((1000 + 10 + 500 + 20 + 30 + 40 - 100) * 0.01 - 3.5)


def test_prepared_and_timed():
    done = []
    sample = undisturbed.timed(
        undisturbed.Work(lambda: done.append("run") or 7, lambda: done.append("prepare"))
    )
    assert done == ["prepare", "run"]
    assert sample.size == 7
    assert sample.wall > 0


def test_store_io_reports_every_goal(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    monkeypatch.setattr(store_cases, "PAPER_SAMPLES", 2)
    monkeypatch.setattr(store_cases, "PASSES", 1)
    monkeypatch.setattr(store_io, "memory", lambda path: {"1 threads": 0.5})
    sizes = ["--mib", "32", "--write-mib", "32", "--rounds", "1", "--seconds", "0"]
    places = ["--dir", str(tmp_path), "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["store_io", *sizes, *places])
    store_io.main()
    capsys.readouterr()
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["goals"]) == 8
    assert all(entry["found"] > 0 and isinstance(entry["met"], bool) for entry in report["goals"])
    assert set(report["read_sharded"]) == set(report["read"]) - {"preadv"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_the_published_loop_writes_its_rows(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(store_cases, "PAPER_SAMPLES", 3)
    rows = np.random.default_rng(0).standard_normal((4, store_cases.WIDTH)).astype(np.float16)
    loop = store_cases.PaperLoop(tmp_path / "p.h5", rows)
    loop.prepare()
    assert loop.run() == 3 * 4 * store_cases.WIDTH * 2
    with h5py.File(tmp_path / "p.h5") as file:
        for k in range(4):
            np.testing.assert_array_equal(file[f"point_{k}"][:3], rows[:3].astype(np.float32))
        assert file["sample_ids"].asstr()[:4].tolist() == ["0", "1", "2", ""]


def test_store_gpu_runs_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store_gpu, "WIDTH", 256)
    monkeypatch.setattr(store_gpu, "THREADS", (1, 2))
    arguments = ["store_gpu", "--device", "cpu", "--gib", "0.02", "--rounds", "1", "--dir", str(tmp_path),
                 "--out", str(tmp_path / "out"), "--commit", "abc"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    assert store_gpu.main() == 0
    report = json.loads((tmp_path / "out" / "store_gpu.json").read_text())
    assert all(gate["passed"] for gate in report["gates"].values())
    assert report["gates"]["covariance"]["error"] <= store_gpu.TOLERANCE
    assert "failed" not in report
    assert "skipped" not in report
    assert report["goals"]["covariance"]["found"] > 0
    # A wrong row stops it before anything is timed.
    monkeypatch.setattr(store_gpu.Rows, "sample", lambda self, index: self.base[: store_gpu.SAMPLE_ROWS])
    assert store_gpu.main() == 1
    assert "upload" not in json.loads((tmp_path / "out" / "store_gpu.json").read_text())
    capsys.readouterr()
