"""bench.scaling --gpus, small and on the host: two processes (torchrun, Dask) agree, and all is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import scaling

HOST = ["--gpus", "--device", "cpu", "--commit", "x"]


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scaling_gpus.DASK_PASSES", 1)
    words = ["--work", "covariance", "--rows", "6000", "--width", "64", "--rounds", "1"]
    scaling.main(["--dir", str(tmp_path / "s"), "--out", str(tmp_path), *HOST, *words])
    found = json.loads((tmp_path / "scaling_gpu.json").read_text())
    assert found["agrees"]
    assert 0 <= found["largest relative difference"] <= 1e-10
    torchrun = found["torchrun"]
    for name in ("precise", "exact"):
        keys = ("one GPU", "one GPU, a process by itself", "two GPUs")
        one, itself, two = (torchrun[name][key]["median"] for key in keys)
        assert torchrun[name]["weak scaling"] == pytest.approx(2 * one / two)
        goal = found["weak scaling"][name]
        assert goal["ratio"] == pytest.approx(2 * min(one, itself) / two), "the faster way of one GPU counts"
        assert goal["of the host's reads"] == pytest.approx(goal["ratio"] / torchrun["host"]["weak scaling"])
        assert goal["met"] == (goal["ratio"] >= 1.85)
        parts = torchrun["parts of a pass"][name]
        assert list(parts["one GPU"]) == ["settle", "rows", "finalize"]
        assert list(parts["two GPUs"]) == ["settle", "rows", "exchange", "finalize"]
    for key in ("of one GPU, GB/s", "of two GPUs, GB/s"):
        assert torchrun["host"][key] > 0.001  # small files
    assert [found["dask"][n]["seconds"]["passes"] for n in ("1", "2")] == [1, 1]
    assert found["met"] == all(one["met"] for one in found["weak scaling"].values())


def test_two_capture_at_once(tmp_path: Path) -> None:
    words = ["--work", "capture,tokens", "--rounds", "2", "--samples", "64"]
    scaling.main(["--dir", str(tmp_path / "s"), "--out", str(tmp_path), *HOST, *words])
    assert not list((tmp_path / "s").glob("*/*")), "stores must go"
    assert not (tmp_path / "scaling_gpu.json").exists(), "figures of other work stay as they are"
    for name, points in (("capture", 4), ("tokens", 2)):
        found = json.loads((tmp_path / f"scaling_gpu_{name}.json").read_text())
        assert found["agrees"]
        assert found["complete and verified"]
        assert found["same bits"], "batches and processor are the same"
        assert 0 <= found["largest relative difference"] <= found["tolerance"]
        assert len(found["points"]) == points
        seconds = found["seconds"]
        assert [seconds[key]["passes"] for key in ("one GPU", "the other one", "two GPUs")] == [2, 1, 2]
        one, two = (seconds[key]["median"] for key in ("one GPU", "two GPUs"))
        goal = found["weak scaling"]
        assert goal["ratio"] == pytest.approx(2 * one / two)
        assert found["met"] == goal["met"] == (goal["ratio"] >= 1.85)
        assert found["samples a second"]["two GPUs"] == pytest.approx(128 / two)
        # the median of two rounds is their mean, which parts are
        assert sum(found["parts"]["one GPU"].values()) == pytest.approx(one, rel=0.05, abs=0.05)
        assert all(sum(parts.values()) <= two for parts in found["parts"]["two GPUs"])
        assert all(parts["set-up, waiting for the other"] > 0 for parts in found["parts"]["two GPUs"])
        # each process captures its samples, and what more its last chunks need
        assert found["samples that each of two captured"][1] == 64
        assert 64 <= found["samples that each of two captured"][0] <= 128
        assert found["writing"]["one process, GB/s"] > 0
        assert found["forwards"]["one GPU, ms a sample"] > 0


def test_unknown_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--dir", str(tmp_path), *HOST, "--work", "covariance,gradients"])
    assert "got gradients, expected some of covariance,capture,tokens" in capsys.readouterr().err
