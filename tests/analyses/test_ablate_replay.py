"""`ablate` from a store: the published formulas, every hook point of the decoder, sweeps."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from modegap import cli
from modegap.analyses.ablate import ablate
from modegap.analyses.ablate.sweep import benjamini_hochberg, holm
from modegap.analyses.saved import load_result, save_result
from modegap.engine.datasets import ListDataset
from modegap.engine.errors import EngineError
from modegap.stores import StoreError

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("replay_cases.py"))))
SUBSETS = ["ms", "ta", "random*3", "0,4"]


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.make_case(tmp_path_factory.mktemp("stores"), request.param, 10)


def test_the_store_gives_what_the_whole_model_gives(case: Any) -> None:
    replayed = ablate(case.loaded, case.modal, case.modes, SUBSETS, batch_size=6, draws=50)
    whole = ablate(case.loaded, ListDataset(case.samples), case.modes, SUBSETS, batch_size=1, draws=50)
    assert replayed.ids == whole.ids
    np.testing.assert_allclose(replayed.baseline, whole.baseline, rtol=2e-5)
    for a, b in zip(replayed.conditions, whole.conditions, strict=True):
        assert [d.subset for d in a.draws] == [d.subset for d in b.draws]
        for mine, theirs in zip(a.draws, b.draws, strict=True):
            np.testing.assert_allclose(mine.loss, theirs.loss, rtol=5e-5)
            assert mine.variance == theirs.variance
    assert replayed.certificate.store_hashes["replayed"] == case.modal.content_hash()


def test_paper_mode_repeats_the_published_loop(case: Any) -> None:
    found = ablate(
        case.loaded, str(case.modal.path), case.modes, ["ms"], target="paper", batch_size=7, draws=50
    )
    u = torch.from_numpy(case.modes.U[:, case.modes.ms]).float()
    base, removed = [], []
    for sample in case.samples:
        for kept, fn in ((base, lambda z: z), (removed, lambda z: z - (z @ u) @ u.T)):
            with torch.no_grad():
                _, logits, labels = cases.script_forward(case.loaded, sample, fn)
                kept.append(float(cases.script_loss(logits, labels)))
    np.testing.assert_allclose(found.baseline, base, rtol=2e-5)
    np.testing.assert_allclose(found.condition("ms").draws[0].loss, removed, rtol=5e-5)
    change = found.condition("ms").change
    delta = np.array(removed) - base
    assert change.percent == pytest.approx(100 * delta.mean() / np.mean(base), rel=1e-3)
    assert "as published" in found.table().notes[1]


def test_hook_points_inside_the_decoder(case: Any) -> None:
    options = {"point": "llm_hidden_1", "draws": 50}
    replayed = ablate(case.loaded, case.modal, case.modes, ["ms", "0,4"], **options)
    whole = ablate(case.loaded, ListDataset(case.samples), case.modes, ["ms", "0,4"], **options)
    for a, b in zip(replayed.conditions, whole.conditions, strict=True):
        np.testing.assert_allclose(a.draws[0].loss, b.draws[0].loss, rtol=5e-5)
    assert abs(whole.conditions[0].change.mean_delta) > 1e-4
    with pytest.raises(EngineError, match=r"encoder_output lies before.*give a data set"):
        ablate(case.loaded, case.modal, case.modes, ["ms"], point="encoder_output")


def test_a_sweep_takes_every_mode_alone(case: Any) -> None:
    found = ablate(case.loaded, case.modal, case.modes, ["each", "3"], batch_size=16, draws=300)
    sweep = found.sweep
    assert sweep is not None
    assert sweep.modes.tolist() == case.modes.considered.tolist()
    alone = found.condition("3")
    at = sweep.modes.tolist().index(3)
    assert sweep.delta[at] == pytest.approx(alone.change.mean_delta, rel=1e-4, abs=1e-7)
    loss = alone.draws[0].loss
    test = ttest_rel(loss, found.baseline)
    assert sweep.p[at] == pytest.approx(test.pvalue, rel=1e-2)
    assert sweep.t[at] == pytest.approx(test.statistic, rel=1e-2)
    assert sweep.percent_low[at] == pytest.approx(alone.change.percent_low, rel=0.5, abs=0.05)
    assert np.all(sweep.percent_low <= sweep.percent)
    assert np.all(sweep.percent <= sweep.percent_high)
    assert np.all((sweep.p <= sweep.q_bh) & (sweep.q_bh <= sweep.p_holm + 1e-12))
    assert sweep.variance.sum() == pytest.approx(
        case.modes.eigenvalues[case.modes.considered].sum() / case.modes.eigenvalues.sum()
    )
    first = ablate(case.loaded, case.modal, case.modes, ["each*48"], batch_size=16, draws=20)
    assert first.conditions == ()
    assert first.sweep is not None
    assert first.sweep.modes.tolist() == list(range(48))
    k = case.modes.considered
    np.testing.assert_allclose(first.sweep.delta[k], sweep.delta, rtol=1e-3, atol=1e-6)


def test_adjusted_p_values_are_the_textbooks() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])


def test_under_the_null_a_sweep_finds_nothing() -> None:
    from modegap.analyses.ablate import AblateConfig
    from modegap.analyses.ablate.sweep import sweep_of

    rng = np.random.default_rng(0)
    modes = SimpleNamespace(rho=np.ones(400), eigenvalues=np.ones(400))
    base = rng.normal(3, 0.3, 50)
    losses = base + rng.normal(0, 0.1, (400, 50))
    losses[7] += 0.2
    losses[9] = base
    found = sweep_of(modes, range(400), base, losses, AblateConfig(draws=50))
    assert found.found().tolist() == [7]
    assert (found.p[9], found.delta[9]) == (1.0, 0.0)
    assert (found.p < 0.05).sum() > 5  # which is what the control is for


def test_saved_shown_and_drawn(case: Any, tmp_path: Path) -> None:
    for subsets in (["ms", "each"], ["each*3"]):
        found = ablate(case.loaded, case.modal, case.modes, subsets, draws=20)
        after = load_result(save_result(found, tmp_path / "a.json"))
        assert after.to_json() == found.to_json()
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["sweep"]["modes"]
        assert [len(table.rows) for table in found.tables()] == [
            1 + len(found.conditions),
            len(found.sweep.modes),
        ]  # type: ignore[union-attr]
        assert "<svg" in found._repr_html_()


def test_command_and_mistakes(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modegap._facade.load", lambda *args, **more: case.loaded)
    modes = str(case.modes.save(tmp_path / "m.safetensors"))
    args = ["ablate", "m", str(case.modal.path), modes, "--subsets", "ms,each*2", "--draws", "20"]
    assert cli.main([*args, "--json", "--n-samples", "4"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["n"], shown["sweep"]["modes"]) == (4, [0, 1])
    assert cli.main([*args, "--n-samples", "4", "--quiet"]) == 0
    assert "Single modes removed" in capsys.readouterr().out
    with pytest.raises(ValueError, match="options of a replay"):
        ablate(case.loaded, ListDataset(case.samples), case.modes, ["ms"], target="paper")
    with pytest.raises(ValueError, match="only 48 modes"):
        ablate(case.loaded, case.modal, case.modes, ["each*49"])
    with pytest.raises(StoreError):
        ablate(case.loaded, tmp_path / "none.zarr", case.modes)
