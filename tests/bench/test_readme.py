"""The generated performance table and the roofline, from the committed results and from made-up ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import readme, roofline, saved
from bench.goals import GOALS, Goal

ROOT = Path(__file__).resolve().parents[2]
PEER = "torch.mm(x.T, x, out_dtype=float32)"


def record(
    provider: str, ms: float, case: str = "covariance", width: int = 4096, **facts: Any
) -> dict[str, Any]:
    return {"case": case, "width": width, "provider": provider, "ms": ms, "error": 1e-6, "accurate": True,
            "tflops": 100 / ms, "gb_per_s": 10 / ms, "fraction_of_floor": 0.5, **facts}  # fmt: skip


def body(*records: dict[str, Any]) -> dict[str, Any]:
    return {
        "environment": {"gpu": "Test H100", "torch": "9.9", "commit": "abc1234+"},
        "ceilings": {"copy": 1e12, "fp16": 2e14},
        "results": list(records),
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "other.json").write_text('{"rows": 3}')
    made = body(
        record("modegap precise", 2.0),
        record(PEER, 2.5, accurate=False, error=4e-4),
        {"case": "covariance", "width": 4096, "provider": "absent", "missing": "not installed"},
    )
    (tmp_path / "gpu.json").write_text(json.dumps(made))
    return tmp_path


def test_table_names_machine_versions_ratio_and_misses(results: Path) -> None:
    text = readme.performance(results)
    assert "**Test H100**: torch 9.9; commit `abc1234` with uncommitted changes" in text
    assert f"| covariance | 2 | `{PEER}` | 2.5 | 1.25x | 50 TFLOP/s | 0.50 | 1e-6 | 4e-4 *fails* |" in text
    assert f"≥ 1.4x `{PEER}`: **missed** with 1.25 at width 4096" in text
    assert "≥ 20x `torch.cov(x.float().T) * n`: **not measured** at width 4096" in text
    assert "0 of 2 met" in text
    assert "`absent` (not installed)" in text
    assert "rows" not in text


def test_goals_are_for_one_chip() -> None:
    made = body(record("modegap precise", 2.0), record(PEER, 2.5))
    assert "missed" in readme.section(made)
    made["environment"] = {"cpu": "Test CPU", "commit": "abc1234"}
    assert "**Test CPU**" in readme.section(made)
    assert "missed" not in readme.section(made)


def test_slower_than_the_obvious_code_is_said() -> None:
    text = readme.section(body(record("modegap", 2.0, case="x"), record("y", 1.0, case="x")))
    assert "Slower than the obvious code: x at 4096 (0.50x)." in text
    fast = readme.section(body(record("modegap", 1.0, case="x"), record("y", 2.0, case="x")))
    assert "Slower" not in fast


def test_a_partial_peer_is_no_rival() -> None:
    assert (
        saved.best({"vector_norm only": record("vector_norm only", 1.0), "y": record("y", 3.0)})["ms"] == 3.0
    )  # type: ignore[index]


@pytest.mark.parametrize(
    ("goal", "width", "ms", "state"),
    [
        (Goal("c", ratio=1.4, peer="p"), 4096, 1.0, "met"),
        (Goal("c", ratio=1.4, peer="p"), 4096, 1.05, "missed"),
        (Goal("c", ratio=1.4, peer="p"), 8192, 1.05, "met"),
        (Goal("c", ratio=1.4, peer="p"), 8192, 1.2, "missed"),
        (Goal("c", ratio=1.4, peer="q"), 4096, 1.0, "not measured"),
        (Goal("c", floor=0.5), 4096, 1.0, "met"),
        (Goal("c", floor=0.6), 4096, 1.0, "missed"),
        (Goal("c", ms=1.0), 4096, 1.1, "missed"),
        (Goal("c", ms=1.0), 8192, 0.5, "not measured"),
    ],
)
def test_goals(goal: Goal, width: int, ms: float, state: str) -> None:
    assert goal.state(record("modegap", ms, width=width), {"p": record("p", 1.4, width=width)}) == state


def test_every_goal_has_its_case_in_the_committed_results() -> None:
    found = saved.load(ROOT / "bench" / "results" / "kernels_h100.json")
    assert found is not None
    assert {goal.case for goal in GOALS} <= {entry["case"] for entry in found["results"]}


def test_write_then_check(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    assert readme.main(["--check", str(path), "--results", str(results)]) == 1
    assert "is stale" in capsys.readouterr().err
    assert readme.main(["--write", str(path), "--results", str(results)]) == 0
    assert readme.main(["--check", str(path), "--results", str(results)]) == 0
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{readme.END}\nafter\n")
    assert "old" not in text
    path.write_text(f"{readme.END}{readme.BEGIN}")
    with pytest.raises(SystemExit, match="2"):
        readme.main(["--write", str(path), "--results", str(results)])


def test_the_readme_is_what_the_results_give() -> None:
    assert readme.main(["--check", str(ROOT / "README.md")]) == 0


def test_roofs_rise_with_bandwidth_and_end_flat() -> None:
    low, ridge, high = roofline.roofs({"copy": 1e12, "fp16": 2e14}, 10.0, 1000.0)
    assert (low["intensity"], low["tflops"]) == (10.0, 10.0)
    assert (ridge["intensity"], ridge["tflops"], high["tflops"]) == (200.0, 200.0, 200.0)


def test_roofline_of_the_committed_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = ROOT / "bench" / "results" / "kernels_h100.json", tmp_path / "r.svg"
    assert roofline.main([str(source), "--out", str(out)]) == 0
    text = out.read_text()
    assert "cross-covariance" in text
    assert "masked mean" in text
    found = saved.load(source)
    assert found is not None
    ours = [point for point in roofline.points(found, 4096) if point["who"] == "modegap"]
    assert all(point["share"] <= 1.0 for point in ours if "tflops" not in point)
    with pytest.raises(SystemExit, match="2"):
        roofline.main([str(source), "--width", "77", "--out", str(out)])
    assert "expected one of 4096, 8192" in capsys.readouterr().err
