"""`bound`: constants and distances of closed form, a theorem that must hold, and the ranking."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modegap import cli
from modegap.analyses.bound import BoundConfig, bound
from modegap.analyses.bound.constants import log10_prefactor, softmax_lipschitz
from modegap.analyses.bound.penalty import penalty
from modegap.analyses.distance.transport import w1
from modegap.analyses.gmi import gmi
from modegap.analyses.lipschitz import lipschitz
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.saved import load_result, save_result
from modegap.stores import StoreError

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("replay_cases.py"))))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.make_case(tmp_path_factory.mktemp("stores"), "llava", 24)


@pytest.fixture(scope="module")
def norms(case: Any) -> Any:
    return lipschitz(case.loaded, case.modal, batch_size=12, draws=20)


@pytest.fixture(scope="module")
def measured(case: Any) -> Any:
    return gmi(case.loaded, case.modal, case.text, alternatives=7, batch_size=12, draws=20)


def test_the_prefactor_does_not_overflow() -> None:
    assert log10_prefactor(2.0, 3.0) == pytest.approx(np.log10((1 + np.exp(6)) * 2))
    assert log10_prefactor(9.08, 17.0) == pytest.approx(9.08 * 17 / np.log(10) + np.log10(9.08))
    assert log10_prefactor(60.0, 230.0) > 5000
    assert log10_prefactor(0.0, 1.0) == -np.inf


def test_the_probes_constant_bounds_every_gradient() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 6))
    top = softmax_lipschitz(w)
    largest = 0.0
    for z in 30 * rng.normal(size=(400, 6)):
        p = np.exp(w @ z - (w @ z).max())
        p /= p.sum()
        largest = max(largest, *np.linalg.norm(w - p @ w, axis=1))
    assert 0.95 * top < largest <= top * (1 + 1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_theorem_3_holds_on_every_data(classes: int) -> None:
    losses = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        codes = rng.integers(classes, size=160)
        centres = 2 * rng.normal(size=(classes, 5))
        modal = (centres[codes] + rng.normal(size=(160, 5))).astype(np.float32)
        shift, scale = 3 * rng.normal(size=5), rng.uniform(0.2, 3)
        text = (scale * modal + shift).astype(np.float32)
        names = [f"k{code}" for code in codes]
        found = penalty("kind", (modal, names), (text, names), BoundConfig(seed=seed), 1.0)
        assert found.holds, found
        losses.append(found.loss)
        assert found.classes == classes
        same = penalty("kind", (modal, names), (modal, names), BoundConfig(seed=seed), 1.0)
        assert same.holds
    assert max(losses) > 0.1


def test_the_pair_has_the_measured_constants(case: Any, norms: Any, measured: Any) -> None:
    found = bound(case.modal, case.text, norms, measured, labels=["kind"])
    pair = found.pair
    rows = [
        np.concatenate([store.rows(point, "pooled").sample(i) for i in range(24)])
        for store, point in ((case.modal, "adapter_output"), (case.text, "text_embedding"))
    ]
    assert pytest.approx(np.percentile(norms.norms, 95)) == pair.L
    assert pair.w1 == pytest.approx(w1(*(side.astype(float) for side in rows)), rel=1e-5)
    assert pair.paired == pytest.approx(np.linalg.norm(rows[0] - rows[1], axis=1).mean(), rel=1e-5)
    assert pair.paired >= pair.w1
    assert pair.w1_floor < pair.w1_halves
    assert [(p.constant, p.diameter) for p in pair.prefactors] == [
        ("positions", "D"),
        ("positions", "D_eff"),
        ("shift", "D"),
        ("shift", "D_eff"),
    ]
    first = pair.prefactors[0]
    expected = (1 + np.exp(first.L * first.D)) * first.L * max(pair.w1, pair.paired)
    assert 10**first.log10_bound == pytest.approx(expected, rel=1e-9)
    gap = measured.gap.value
    assert pair.looseness(first) == pytest.approx(np.log10(expected / abs(gap)), abs=1e-9)
    assert found.table().rows[0][-1] is bool(abs(gap) <= expected)
    assert found.penalties[0].holds
    assert found.penalties[0].ratio == pytest.approx(pair.L / found.penalties[0].L_h)
    mean = bound(case.modal, case.text, norms, constant="mean").pair
    assert pytest.approx(norms.norms.mean()) == mean.L
    assert mean.gap is None
    assert mean.looseness(mean.prefactors[0]) is None


def test_ranking(case: Any, norms: Any) -> None:
    base = bound(case.modal, case.text, norms)
    others = []
    for i, (order, gap) in enumerate([(5.0, 0.5), (1e4, 0.9), (1e-3, -0.1)]):
        pair = replace(base.pair, name=f"other {i}", first_order=order, gap=Estimate(gap))
        others.append(replace(base, pairs=(pair,)))
    found = bound(case.modal, case.text, norms, None, [*others, base])
    assert len(found.pairs) == 4
    names = [one.name for one in found.ranking()]
    assert (names[0], names[-1]) == ("other 1", "other 2")
    assert found.agreement()[0] == pytest.approx(1.0)
    assert len(found.ranking_table().rows) == 4
    assert base.agreement() is None


def test_saved_shown_drawn_and_run(
    case: Any, norms: Any, measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = [
        str(save_result(result, tmp_path / f"{i}.json"))
        for i, result in enumerate((norms, measured, bound(case.modal, case.text, norms)))
    ]
    out = str(tmp_path / "b.json")
    args = ["bound", str(case.modal.path), str(case.text.path), files[0], "--gmi", files[1], "--out", out]
    assert cli.main([*args, "--others", files[2], "--labels", "kind,score", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    result = load_result(out)
    assert result.to_json() == shown
    assert len(result.tables()) == 2  # the other pair is this one
    assert "two are needed" in shown["penalties"][1]["message"]
    assert "<svg" in result._repr_html_()
    assert cli.main([*args[:3], files[1]]) == 1
    assert "give the file of modegap lipschitz" in capsys.readouterr().err


def test_mistakes(case: Any, norms: Any) -> None:
    with pytest.raises(StoreError, match="text_embedding"):
        bound(case.modal, case.modal, norms)
    with pytest.raises(StoreError, match="kind"):
        bound(case.modal, case.text, norms, labels=["kin"])
    for options in ({"constant": "p50"}, {"rows": 2}, {"labels": "kind"}, {"C": 0}, {"test_fraction": 1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            BoundConfig(**options)
