"""`swap`: the published formulas, and decoders that must or must not notice."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modegap import cli
from modegap.analyses.saved import load_result, save_result
from modegap.analyses.swap import SwapConfig, swap
from modegap.stores import StoreError

cases = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("replay_cases.py"))))


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.make_case(tmp_path_factory.mktemp("stores"), request.param, 12)


def script_kl(p: torch.Tensor, q: torch.Tensor, labels: torch.Tensor) -> float:
    """The published divergence: a mean over all shifted positions."""
    log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    valid = labels >= 0
    return float((kl * valid).sum() / valid.sum())


def test_paper_mode_repeats_the_published_loop(case: Any) -> None:
    found = swap(case.loaded, case.modal, case.modes, by="kind", target="paper", batch_size=7, draws=50)
    x = np.concatenate([case.modal.rows("adapter_output", "pooled").sample(i) for i in range(12)])
    kinds = list(case.modal.labels["kind"].values)
    names = sorted(set(kinds))
    rng = np.random.default_rng(42)
    losses, kls, norms = np.zeros((3, 12)), np.zeros((2, 12)), np.zeros((2, 12))
    spans = [case.modes.U[:, case.modes.ms], case.modes.U[:, case.modes.ta]]
    for i, sample in enumerate(case.samples):
        donor = rng.choice([name for name in names if name != kinds[i]])
        with torch.no_grad():
            _, base, labels = cases.script_forward(case.loaded, sample)
            losses[0, i] = cases.script_loss(base, labels)
            for s, u in enumerate(spans):
                mean = {n: u @ (u.T @ x[[k == n for k in kinds]].mean(axis=0)) for n in names}
                given, span = torch.from_numpy(mean[donor]).float(), torch.from_numpy(u).float()
                fn = lambda z: z - ((z @ span) @ span.T).mean(1, keepdim=True) + given  # noqa: B023, E731
                count = case.loaded.collate([sample]).media_counts[0]
                whole = lambda z: torch.cat([fn(z[:, :count]), z[:, count:]], 1)  # noqa: B023, E731
                _, logits, labels = cases.script_forward(case.loaded, sample, whole)
                losses[s + 1, i] = cases.script_loss(logits, labels)
                kls[s, i] = script_kl(base, logits, labels)
                norms[s, i] = np.linalg.norm(mean[donor] - mean[kinds[i]])
    np.testing.assert_allclose(found.baseline, losses[0], rtol=2e-5)
    for s, one in enumerate(found.swapped):
        np.testing.assert_allclose(one.loss, losses[s + 1], rtol=1e-4)
        np.testing.assert_allclose(one.kl, kls[s], rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(one.squared, norms[s] ** 2, rtol=1e-3)
        assert one.mean_kl_per_move.value == pytest.approx((kls[s] / norms[s] ** 2).mean(), rel=2e-2)
        delta = losses[s + 1] - losses[0]
        assert one.change.percent == pytest.approx(100 * delta.mean() / losses[0].mean(), rel=5e-3)
    ratio = found.contrasts[0][2]
    assert ratio.value == pytest.approx(kls[1].mean() / kls[0].mean(), rel=1e-2)
    assert ratio.low <= ratio.value <= ratio.high


def test_the_perturbation_is_measured_on_the_sample_itself(case: Any) -> None:
    found = swap(case.loaded, case.modal, case.modes, by="kind", draws=20, donors=2)
    x = np.concatenate([case.modal.rows("adapter_output", "pooled").sample(i) for i in range(12)])
    means = np.stack([x[found.codes == code].mean(axis=0) for code in range(2)])
    u = case.modes.U[:, case.modes.ms]
    expected = np.square((means[found.donors[0]] - x) @ u).sum(axis=1)
    assert found.donors.shape == (2, 12)
    np.testing.assert_array_equal(found.donors[0], 1 - found.codes)  # two classes: no choice
    np.testing.assert_allclose(found.of("ms").squared, expected, rtol=1e-3)
    assert found.of("ms").mean_norm == pytest.approx(np.sqrt(expected).mean(), rel=1e-3)


def test_a_swap_of_nothing_is_not_noticed(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Donors of the sample's own component: z' = z."""
    from modegap.analyses.swap import compute

    real = compute.swapping
    monkeypatch.setattr(compute, "swapping", lambda means, donors, u: lambda z, owner: z)
    found = swap(case.loaded, case.modal, case.modes, by="kind", draws=20)
    assert all(np.abs(one.kl).max() < 1e-6 for one in found.swapped)
    rows = torch.randn(9, 48)
    u = case.modes.U[:, :5]
    moved = real(np.zeros((1, 48)), np.array([0, 0]), u)(rows, torch.tensor([0] * 4 + [1] * 5))
    for part in (slice(0, 4), slice(4, 9)):
        change = (moved - rows)[part]
        torch.testing.assert_close(change, change[:1].expand_as(change))  # the residual of a position stays
        assert float((moved[part].mean(0) @ torch.from_numpy(u).float()).norm()) < 1e-5


def test_unlabelled_samples_are_left_out_and_listed(case: Any) -> None:
    found = swap(case.loaded, case.modal, case.modes, by="note", subspaces=["0,1"], draws=20)
    missing = [s.id for i, s in enumerate(case.samples) if i % 3 == 0]
    assert [name for name, _ in found.failures] == missing
    assert len(found.ids) == 8
    assert len(found.classes) == 8
    few = swap(
        case.loaded, case.modal, case.modes, by="kind", n_samples=3, subspaces=["ms", "random*2"], draws=20
    )
    assert [one.name for one in few.swapped] == ["ms", "random*2 #42", "random*2 #43"]
    assert len(few.contrasts) == 2


def test_saved_shown_drawn_and_run(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modegap._facade.load", lambda *args, **more: case.loaded)
    modes, out = str(case.modes.save(tmp_path / "m.safetensors")), str(tmp_path / "s.json")
    args = ["swap", "m", str(case.modal.path), modes, "--by", "kind", "--out", out, "--draws", "20", "--json"]
    assert cli.main(args) == 0
    shown = json.loads(capsys.readouterr().out)
    result = load_result(out)
    assert result.to_json() == shown
    assert load_result(save_result(result, tmp_path / "again.json")).table() == result.table()
    assert "<svg" in result._repr_html_()
    with pytest.raises(StoreError, match="speaker"):
        swap(case.loaded, case.modal, case.modes)
    for options in ({"subspaces": "ms"}, {"donors": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SwapConfig(**options)
