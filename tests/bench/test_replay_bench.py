"""The replay benchmark's gate: replay and the published loops agree on a small model, and a wrong one is caught."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from bench import replay
from bench.llava import SMALL


@pytest.fixture(scope="module")
def made() -> Any:
    return replay.material(SMALL, "cpu", torch.float32, 4)


def test_replay_agrees_with_the_published_loops(made: Any) -> None:
    found = replay.check(made, 4, tight=True)
    assert max(found.values()) < replay.SMALL_TOLERANCE


def test_the_gate_closes(made: Any) -> None:
    wrong = dataclasses.replace(made, stored=made.stored * 1.01)
    with pytest.raises(SystemExit, match="nothing was timed"):
        replay.check(wrong, 4, tight=True)


def test_ratios_are_of_the_best_batch() -> None:
    def entry(provider: str, ms: float, **more: Any) -> dict[str, Any]:
        return {"provider": provider, "ms": ms, "batch": 8, "peak_gib": 1.0, **more}

    ours = [entry("replay", ms, target=target) for target in ("answer", "paper") for ms in (20.0, 10.0)]
    found = {kind: [entry("published loop", 85.0), *ours] for kind in ("gradients", "ablation")}
    lines = replay.ratios(found)
    assert len(lines) == 4
    assert all("8.50x" in line for line in lines)
