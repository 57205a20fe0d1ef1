"""bench.scaling --gpus, small and on the host: two processes of torchrun and Dask's workers agree, and all is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import scaling


def test_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.scaling_gpus.DASK_PASSES", 1)
    words = ["--gpus", "--device", "cpu", "--rows", "6000", "--width", "64", "--rounds", "1", "--commit", "x"]
    scaling.main(["--dir", str(tmp_path / "s"), "--out", str(tmp_path), *words])
    found = json.loads((tmp_path / "scaling_gpu.json").read_text())
    assert found["agrees"]
    assert 0 <= found["largest relative difference"] <= 1e-10
    torchrun = found["torchrun"]
    for name in ("precise", "exact"):
        one, two = (torchrun[name][key]["median"] for key in ("one GPU", "two GPUs"))
        assert torchrun[name]["weak scaling"] == pytest.approx(2 * one / two)
        goal = found["weak scaling"][name]
        assert goal["ratio"] == torchrun[name]["weak scaling"]
        assert goal["of the host's reads"] == pytest.approx(
            goal["ratio"] / torchrun["host"]["reads"]["weak scaling"]
        )
        assert goal["met"] == (goal["ratio"] >= 1.85)
        parts = torchrun["parts of a pass"][name]
        assert list(parts["one GPU"]) == ["settle", "rows", "finalize"]
        assert list(parts["two GPUs"]) == ["settle", "rows", "exchange", "finalize"]
    for way in ("reads", "memory maps"):
        assert torchrun["host"][way]["one process, GB/s"] > 0.01
        assert torchrun["host"][way]["two processes, GB/s"] > 0.01
    assert [found["dask"][n]["seconds"]["passes"] for n in ("1", "2")] == [1, 1]
    assert found["met"] == all(one["met"] for one in found["weak scaling"].values())
