"""The probe benchmark on the host at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import probe


def test_both_are_measured_on_the_same_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ["--rows", "300", "--width", "64", "--points", "2", "--loop", "2"]
    for tol in ("1e-2", "1e-1"):
        monkeypatch.setattr(
            "sys.argv", ["probe", "--out", str(tmp_path), *size, "--tol", tol, "--commit", "x"]
        )
        probe.main()
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert [entry["tol"] for entry in saved["tolerances"]] == [1e-2, 1e-1]
    assert saved["gate"]["loss"] <= 1e-6
    for entry in saved["tolerances"]:
        assert entry["ratio"] == pytest.approx(entry["seconds"]["loop"] / entry["seconds"]["modegap"])
        assert len(entry["cells"]) == 3
        assert all(gap <= 3 for cell in entry["cells"] for gap in cell["test samples apart"])
        assert len(entry["seconds a hook point"]) == 2
    # labels of other rows, which are noise here, would be read at chance and take many times the iterations
    read = saved["tolerances"][0]["of the labels at each hook point"]["accuracy"]
    assert all(point[1] > 0.2 for point in read)


def test_the_gate_tells_a_fit_short_of_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    from modegap.analyses.probe import lbfgs

    whole = lbfgs.minimise
    monkeypatch.setattr(lbfgs, "minimise", lambda problems, **_: whole(problems, tol=1e-3, max_iter=50))
    with pytest.raises(SystemExit, match="gate: loss"):
        probe.gate(None)
