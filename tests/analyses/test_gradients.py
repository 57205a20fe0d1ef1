"""`lipschitz` and `gradproj`: the published formulas, their statistics and what is left out."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from modegap import cli
from modegap.analyses.gradproj import GradprojConfig, gradients, gradproj
from modegap.analyses.lipschitz import LipschitzConfig, lipschitz
from modegap.analyses.lipschitz.diameter import diameter, participation
from modegap.analyses.saved import load_result, save_result
from modegap.engine.replay import decoder as decoder_module
from modegap.stores import StoreError

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("replay_cases.py"))))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.make_case(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def both(case: Any) -> Any:
    return gradients(
        case.loaded, case.modal, case.modes, target="paper", batch_size=5, by=["kind"], draws=200
    )


def test_paper_mode_repeats_the_published_formulas(case: Any, both: Any) -> None:
    norms, projected = both
    grads = [cases.script_gradient(case.loaded, sample) for sample in case.samples]
    expected = np.array([np.linalg.norm(g) for g in grads])
    assert norms.ids == tuple(sample.id for sample in case.samples)
    np.testing.assert_allclose(norms.norms, expected, rtol=1e-3)
    assert norms.overall.mean == pytest.approx(expected.mean(), rel=1e-3)
    for name, q in (("median", 50), ("p5", 5), ("p25", 25), ("p75", 75), ("p95", 95), ("p99", 99)):
        assert getattr(norms.overall, name) == pytest.approx(np.percentile(expected, q), rel=1e-3)
    assert norms.overall.max == pytest.approx(expected.max(), rel=1e-3)
    np.testing.assert_allclose(norms.shifts, [np.linalg.norm(g.sum(axis=0)) for g in grads], rtol=1e-3)
    assert norms.overall.mean_low < norms.overall.mean < norms.overall.mean_high

    u = case.modes.U
    means = np.stack([np.abs(g.mean(axis=0) @ u) for g in grads])
    tokens = np.stack([np.abs(g @ u).mean(axis=0) for g in grads])
    scale = means.mean()
    np.testing.assert_allclose(projected.g, means.mean(axis=0), rtol=2e-3, atol=1e-4 * scale)
    np.testing.assert_allclose(projected.g_tokens, tokens.mean(axis=0), rtol=2e-3, atol=1e-4 * scale)
    k, ms = case.modes.considered, case.modes.is_ms[case.modes.considered]
    assert 0 < ms.sum() < len(ms)
    g, rho = means.mean(axis=0)[k], case.modes.rho[k]
    found = projected.published
    assert found.ms == pytest.approx(g[ms].mean(), rel=2e-3)
    assert found.ratio.value == pytest.approx(g[~ms].mean() / g[ms].mean(), rel=2e-3)
    assert found.ratio.low < found.ratio.value < found.ratio.high
    assert found.spearman == pytest.approx(spearmanr(projected.g[k], rho).statistic)
    assert found.p == pytest.approx(spearmanr(projected.g[k], rho).pvalue)
    assert found.pearson == pytest.approx(np.corrcoef(g, rho)[0, 1], abs=5e-3)
    assert projected.tokens.ratio.value == pytest.approx(
        tokens.mean(0)[k][~ms].mean() / tokens.mean(0)[k][ms].mean(), rel=2e-3
    )


def test_one_pass_gives_what_two_give(case: Any, both: Any) -> None:
    norms = lipschitz(case.loaded, case.modal, target="paper", batch_size=16, draws=200)
    projected = gradproj(case.loaded, case.modal, case.modes, target="paper", batch_size=3, draws=200)
    np.testing.assert_allclose(norms.norms, both[0].norms, rtol=1e-4)
    np.testing.assert_allclose(projected.g, both[1].g, rtol=1e-3, atol=1e-8)


def test_classes_have_their_own_statistics(both: Any) -> None:
    norms = both[0].norms
    assert [(g.label, g.value, g.norms.n) for g in both[0].groups] == [("kind", "cat", 8), ("kind", "dog", 8)]
    assert both[0].groups[1].norms.mean == pytest.approx(norms[1::2].mean())
    assert [row[:3] for row in both[0].table().rows] == [
        ("all", "", 16),
        ("kind", "cat", 8),
        ("kind", "dog", 8),
    ]


def test_answers_are_the_default_target(case: Any) -> None:
    found = lipschitz(case.loaded, case.modal, n_samples=6, draws=50)
    assert len(found.norms) == 6
    paper = lipschitz(case.loaded, case.modal, n_samples=6, draws=50, target="paper")
    assert np.all(np.abs(found.norms / paper.norms - 1) > 1e-3)
    assert "prompt's own tokens" in paper.table().notes[0]


def test_diameter() -> None:
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32) * [5, 1, 1, 1, 0.1]
    found = diameter(x, pairs=0)
    gaps = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert found.from_pairs == pytest.approx(gaps.max(), rel=1e-6)
    assert found.from_std == pytest.approx(x.std() * np.sqrt(5), rel=1e-6)
    assert max(found.from_std, found.from_pairs) == found.D
    values = np.linalg.eigvalsh(np.cov(x.T))
    ratio = values.sum() ** 2 / (values**2).sum()
    assert found.participation == pytest.approx(ratio, rel=1e-6)
    assert pytest.approx(x.std() * np.sqrt(ratio), rel=1e-6) == found.D_eff
    assert participation(x[:4].astype(float)) == pytest.approx(
        np.trace(c := np.cov(x[:4].T.astype(float))) ** 2 / np.square(c).sum()
    )
    few = diameter(x, pairs=10, seed=1)
    assert few.pairs == 10
    assert few.from_pairs < found.from_pairs
    with pytest.raises(ValueError, match="at least 2"):
        diameter(x[:1])


def test_the_published_diameter() -> None:
    x = np.random.default_rng(0).normal(size=(700, 3)).astype(np.float32)
    kept = x[np.random.default_rng(42).choice(700, size=500, replace=False)]
    rng = np.random.default_rng(123)
    a, b = rng.choice(500, size=200, replace=True), rng.choice(500, size=200, replace=True)
    largest = np.linalg.norm(kept[a] - kept[b], axis=1).max()
    found = diameter(x, paper=True)
    assert pytest.approx(max(kept.std() * np.sqrt(3), largest), rel=1e-6) == found.D


def test_failures_are_listed_and_the_rest_goes_on(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = decoder_module.Decoder.pack
    bad = case.samples[3].id

    def refuse(self: Any, items: Any, z: torch.Tensor, **more: Any) -> Any:
        if any(item.id == bad for item in items):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pack(self, items, z, **more)

    monkeypatch.setattr(decoder_module.Decoder, "pack", refuse)
    norms, projected = gradients(case.loaded, case.modal, case.modes, batch_size=4, draws=50)
    assert len(norms.norms) == projected.n == 15
    assert bad not in norms.ids
    assert [name for name, _ in norms.failures] == [bad]
    assert norms.retried > 0
    assert any(bad in note for note in norms.table().notes)
    assert json.loads(json.dumps(norms.to_json(), allow_nan=False))["failures"][0][0] == bad


def test_saved_shown_and_drawn(both: Any, tmp_path: Path) -> None:
    for number, result in enumerate(both):
        after = load_result(save_result(result, tmp_path / f"{number}.json"))
        assert type(after) is type(result)
        assert after.to_json() == result.to_json()
        assert after.table() == result.table()
        assert json.loads(json.dumps(result.to_json(), allow_nan=False))
        assert "<svg" in result._repr_html_()


def test_commands(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modegap._facade.load", lambda *args, **more: case.loaded)
    modes = str(case.modes.save(tmp_path / "modes.safetensors"))
    store = str(case.modal.path)
    out = [str(tmp_path / name) for name in ("l.json", "g.json", "h.json")]
    shared = ["--n-samples", "4", "--draws", "20", "--json"]
    args = [
        "lipschitz",
        "m",
        store,
        "--out",
        out[0],
        "--modes",
        modes,
        "--gradproj-out",
        out[1],
        "--by",
        "kind",
    ]
    assert cli.main([*args, *shared]) == 0
    assert json.loads(capsys.readouterr().out)["analysis"] == "lipschitz"
    assert cli.main(["gradproj", "m", store, modes, "--out", out[2], *shared]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 4
    np.testing.assert_allclose(load_result(out[1]).g, load_result(out[2]).g, rtol=1e-5)  # type: ignore[union-attr]
    assert len(load_result(out[0]).groups) == 2  # type: ignore[union-attr]
    assert cli.main(["lipschitz", "m", store, "--modes", modes]) == 2
    assert "go together" in capsys.readouterr().err


def test_bad_options(case: Any) -> None:
    for config, options in (
        (LipschitzConfig, {"batch_size": 0}),
        (LipschitzConfig, {"by": "kind"}),
        (LipschitzConfig, {"pairs": -1}),
        (GradprojConfig, {"level": 1.0}),
        (GradprojConfig, {"target": "prompt"}),
        (GradprojConfig, {"n_samples": 0}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            config(**options)
    with pytest.raises(StoreError, match="kind"):
        lipschitz(case.loaded, case.modal, by=["kin"])
    with pytest.raises(ValueError, match="need two"):
        lipschitz(case.loaded, case.modal, n_samples=1)
