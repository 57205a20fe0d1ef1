from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modegap.analyses.align import Modes, align
from modegap.analyses.pertype import PertypeConfig, PertypeResult, pertype
from modegap.analyses.probe import probe
from modegap.analyses.saved import load_result, save_result
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from modegap.stores.errors import StoreError

N, D = 400, 12
Array = np.ndarray


def write(path: Path, points: dict[str, Array], labels: dict[str, list[str]]) -> ActivationStore:
    plan = StorePlan(
        {name: PointPlan(x.shape[1], "pooled", dtype="float32") for name, x in points.items()},
        [f"s{i}" for i in range(N)],
        labels,
    )
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for i in range(N):
            writer.put(i, {name: SampleRows(pooled=x[i]) for name, x in points.items()})
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ActivationStore, Modes, PertypeResult, Array, dict]:
    """Four modes of large variance; text varies along the last two only. `voice` moves mode 0, `word` mode 3."""
    folder = tmp_path_factory.mktemp("pertype")
    rng = np.random.default_rng(0)
    voice, word, coin = (rng.integers(3, size=N) for _ in range(3))
    scales = np.r_[8, 6, 4, 3, np.full(D - 4, 0.3)]
    x = rng.standard_normal((N, D)) * scales
    x[:, 0] += 8 * voice
    x[:, 3] += 4 * word
    text = rng.standard_normal((N, D)) * np.r_[0.1, 0.1, 4, 6, np.full(D - 4, 0.3)]
    labels = {"voice": [f"v{v}" for v in voice], "word": [f"w{w}" for w in word], "coin": [f"c{c}" for c in coin],
              "same": ["x"] * N}  # fmt: skip
    final = x.copy()
    final[:, 0] = rng.standard_normal(N)
    rows = {"encoder_output": x, "adapter_output": x, "llm_final": final}
    rows = {name: value.astype(np.float32) for name, value in rows.items()}
    modal = write(folder / "m.zarr", rows, labels)
    other = write(folder / "t.zarr", {"text_embedding": text.astype(np.float32)}, {})
    modes = align(modal, other, interval=None)
    probes = probe(modal, labels=["voice", "word", "coin"], seeds=(0, 1))
    result = pertype(modal, modes, probes)
    return modal, modes, result, rows["adapter_output"].astype(np.float64), labels


def test_fractions_equal_the_definition(found) -> None:
    _, modes, result, x, labels = found
    assert (result.n_ms, result.n_ta) == (2, D - 2)
    for name in ("voice", "word", "coin"):
        entry = result.of(name)
        values = np.array(labels[name])
        scatter = np.zeros((D, D))
        for value in np.unique(values):
            gap = x[values == value].mean(0) - x.mean(0)
            scatter += (values == value).sum() * np.outer(gap, gap)
        own = np.diag(modes.U.T @ scatter @ modes.U) / np.trace(scatter)
        assert entry.ms == pytest.approx(own[modes.ms].sum(), abs=2e-6)
        assert entry.ta == pytest.approx(own[modes.ta].sum(), abs=2e-6)
        assert entry.alignment == pytest.approx((own * modes.rho).sum(), rel=1e-5)
        assert (entry.n, entry.classes) == (N, 3)
        centred = x - x.mean(0)
        share = np.square(centred @ modes.U[:, modes.ms]).sum() / np.square(centred).sum()
        assert entry.ms_variance == pytest.approx(share, rel=1e-5)


def test_exact_moments_equal_the_definition_to_1e9(found) -> None:
    modal, modes, _, x, labels = found
    values = np.array(labels["voice"])
    scatter = sum(
        (values == v).sum() * np.outer(x[values == v].mean(0) - x.mean(0), x[values == v].mean(0) - x.mean(0))
        for v in np.unique(values)
    )
    own = np.diag(modes.U.T @ scatter @ modes.U) / np.trace(scatter)
    entry = pertype(modal, modes, labels=["voice"], precision="exact").of("voice")
    assert entry.ms == pytest.approx(own[modes.ms].sum(), rel=1e-9)
    assert entry.alignment == pytest.approx((own * modes.rho).sum(), rel=1e-9)


def test_a_meaningful_label_stands_out_from_the_variance_and_from_noise(found) -> None:
    _, _, result, _, _ = found
    voice, word, coin = (result.of(name) for name in ("voice", "word", "coin"))
    assert voice.ms > 0.97 > voice.ms_variance
    assert voice.ms_clear > voice.ms
    assert word.ta > 0.8
    assert word.w1_ta > 1.3 * word.w1_ta_floor
    assert voice.w1_ms > 1.3 * voice.w1_ms_floor
    assert coin.w1_ms < 1.15 * coin.w1_ms_floor
    assert voice.dimension == 2


def test_degradation_and_its_correlation(found) -> None:
    _, _, result, _, _ = found
    assert result.of("voice").degradation > 0.3
    assert abs(result.of("word").degradation) < 0.1
    first = result.correlations[0]
    assert (first.of, first.n) == ("S_B in MS", 3)
    assert first.p >= 1 / 3  # of three labels no order is significant
    assert -1 <= first.rho <= 1


def test_what_cannot_be_computed_says_so(found, tmp_path: Path) -> None:
    modal, modes, result, _, _ = found
    assert result.of("same").message == "1 class, scatter between classes needs two"
    assert any(note.startswith("same: 1 class") for note in result.table().notes)
    with pytest.raises(StoreError, match="colour"):
        pertype(modal, modes, labels=["colour"])
    with pytest.raises(StoreError, match="no tokens rows"):
        pertype(modal, modes, rows="tokens")
    with pytest.raises(StoreError, match="no label could be analysed"):
        pertype(modal, modes, labels=["same"])
    with pytest.raises(ValueError, match="rows"):
        PertypeConfig(rows="pixels")  # type: ignore[arg-type]
    save_result(result, tmp_path / "p.json")
    with pytest.raises(ValueError, match="expected Modes"):
        pertype(modal, tmp_path / "p.json")


def test_saved_and_shown(found, tmp_path: Path) -> None:
    _, _, result, _, _ = found
    save_result(result, tmp_path / "p.json")
    assert json.dumps(load_result(tmp_path / "p.json").to_json()) == json.dumps(result.to_json())
    assert "<svg" in result._repr_html_()
