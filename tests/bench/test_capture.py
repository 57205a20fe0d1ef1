"""The end-to-end benchmarks run, and their checks hold, at tiny shapes without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("h5py")


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        (
            "llava",
            {
                "over_loop",
                "of_bare_fused",
                "ours_first_ms",
                "tokens_ms",
                "statistics_ms",
                "flat_host_growth_mb",
            },
        ),
        ("streaming", {"few_layer_ms", "many_layer_ms", "same_bits_as_whole_model"}),
        ("big", {"tokens_per_s", "align_s", "predicted_batch_gb"}),
    ],
)
def test_every_part_runs_small(part: str, fields: set[str], tmp_path: Path) -> None:
    from bench.capture.__main__ import main

    options = ["--out", str(tmp_path / "out"), "--parts", part, "--small", "--scratch", str(tmp_path)]
    assert main(options) == 0
    found = json.loads((tmp_path / "out" / f"capture_{part}.json").read_text())
    assert fields <= found.keys()
    assert found["checks"]
    assert all(found["checks"].values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "scratch files must go"
