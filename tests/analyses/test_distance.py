from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from modegap.analyses.distance import (
    DistanceConfig,
    distance,
    gaussian_w2,
    linear_cka,
    mmd2,
    mmd2_features,
    sliced_w1,
    w1,
    w1_bootstrap,
)
from modegap.analyses.saved import load_result, save_result
from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import FourierFeatures, Projections, RowSample
from modegap.engine.reduction_checks import check_reduction
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from modegap.stores.errors import StoreError

Array = np.ndarray


def rows(n: int, d: int, seed: int, mean: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * np.geomspace(3, 0.1, d) + mean


def write(
    path: Path, points: dict[str, Array], labels: dict[str, Sequence[str]] | None = None
) -> ActivationStore:
    n = len(next(iter(points.values())))
    plan = StorePlan(
        {name: PointPlan(x.shape[1], "pooled", dtype="float32") for name, x in points.items()},
        [f"s{i}" for i in range(n)],
        labels or {},
    )
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for i in range(n):
            writer.put(i, {name: SampleRows(pooled=x[i].astype(np.float32)) for name, x in points.items()})
    return ActivationStore.open(path)


def test_w1_equals_pot_and_its_bootstrap_equals_resampling() -> None:
    x, y = rows(60, 7, 0), rows(50, 7, 1, 0.3)
    cost = cdist(x, y)
    assert w1(x, y) == pytest.approx(ot.emd2(np.full(60, 1 / 60), np.full(50, 1 / 50), cost), rel=1e-9)
    found = w1_bootstrap(x, y, draws=9, level=0.5, seed=3, jobs=2)
    rng = np.random.default_rng(3)
    values = []
    for _ in range(9):
        i, j = rng.integers(60, size=60), rng.integers(50, size=50)
        values.append(
            ot.emd2(np.full(60, 1 / 60), np.full(50, 1 / 50), np.ascontiguousarray(cost[np.ix_(i, j)]))
        )
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    expected = [found.value + low - middle, found.value + high - middle]
    assert [found.low, found.high] == pytest.approx(expected, rel=1e-9)


def test_refitted_pca_equals_sklearn_on_every_resample() -> None:
    x, y = rows(40, 12, 0), rows(30, 12, 1, 0.3)
    found = w1_bootstrap(x, y, draws=4, level=0.9, seed=5, jobs=1, refit=5)

    def published(a: Array, b: Array) -> float:
        pca = PCA(5).fit(np.concatenate([a, b]))
        cost = cdist(pca.transform(a), pca.transform(b))
        return float(ot.emd2(np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), cost))

    rng = np.random.default_rng(5)
    draws = [(rng.integers(40, size=40), rng.integers(30, size=30)) for _ in range(4)]
    assert found.value == pytest.approx(published(x, y), rel=1e-9)
    expected = np.quantile([published(x[i], y[j]) for i, j in draws], [0.05, 0.95])
    assert [found.low, found.high] == pytest.approx(expected, rel=1e-8)


def test_mmd2_is_the_unbiased_estimate_and_its_jackknife_leaves_rows_out() -> None:
    x, y = rows(12, 4, 0), rows(9, 4, 1, 0.5)

    def direct(a: Array, b: Array) -> float:
        def k(p: Array, q: Array) -> Array:
            return np.exp(-cdist(p, q, "sqeuclidean") / (2 * 3.0))

        n, m = len(a), len(b)
        own = (k(a, a).sum() - n) / (n * (n - 1)) + (k(b, b).sum() - m) / (m * (m - 1))
        return float(own - 2 * k(a, b).mean())

    found = mmd2(x, y, 3.0, level=0.95)
    assert found.value == pytest.approx(direct(x, y), rel=1e-9)
    left = np.array([direct(np.delete(x, i, 0), y) for i in range(12)])
    right = np.array([direct(x, np.delete(y, i, 0)) for i in range(9)])
    variance = sum((len(v) - 1) / len(v) * ((v - v.mean()) ** 2).sum() for v in (left, right))
    assert found.high - found.value == pytest.approx(1.959964 * variance**0.5, rel=1e-6)


def test_mmd2_interval_covers_zero_for_one_law() -> None:
    inside = 0
    for seed in range(40):
        found = mmd2(rows(80, 3, seed), rows(80, 3, 1000 + seed), 5.0, level=0.9)
        inside += found.low <= 0 <= found.high
    assert inside >= 30


def test_gaussian_w2_equals_pot_and_takes_singular_covariances() -> None:
    x, y = rows(200, 6, 0), rows(200, 6, 1, 0.4)
    args = (x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert gaussian_w2(*args) == pytest.approx(
        ot.gaussian.bures_wasserstein_distance(args[0], args[2], args[1], args[3]), rel=1e-9
    )
    flat = np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 0.0])
    assert gaussian_w2(np.zeros(3), flat[0], np.zeros(3), flat[1]) == pytest.approx(5**0.5, rel=1e-7)
    assert gaussian_w2(args[0], args[1], args[0], args[1]) < 1e-5


def test_cka_equals_the_centred_products() -> None:
    x, y = rows(30, 5, 0), rows(30, 8, 1)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = np.sum((a.T @ b) ** 2) / np.sqrt(np.sum((a.T @ a) ** 2) * np.sum((b.T @ b) ** 2))
    found = linear_cka(a.T @ b / 29, np.cov(x.T), np.cov(y.T))
    assert found == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="same row"):
        linear_cka(np.zeros((5, 8)), np.zeros((5, 5)), np.cov(y.T))


def batches(x: Array, sizes: Sequence[int]) -> list[ActivationBatch]:
    out, at = [], 0
    for size in sizes:
        out.append(ActivationBatch(torch.from_numpy(x[at : at + size]).half(), at, "p", scale=2.0))
        at += size
    return out


def test_row_reductions_are_monoids() -> None:
    x = rows(50, 6, 0)
    parts = batches(x, [20, 17, 13])
    wanted = torch.tensor([0, 3, 19, 20, 36, 37, 49])
    mean, basis = torch.full((6,), 0.5, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[:, :2]
    check_reduction(lambda: RowSample(wanted, 6), parts)
    check_reduction(lambda: RowSample(wanted, 6, basis, mean), parts)
    check_reduction(lambda: Projections(basis, mean), parts, rtol=1e-6)
    check_reduction(lambda: FourierFeatures(basis, mean), parts, rtol=1e-6)
    whole = RowSample(wanted, 6)
    for part in reversed(parts):
        whole.update(part)
    found = whole.finalize()
    assert found.row.tolist() == wanted.tolist()
    np.testing.assert_array_equal(found.values.numpy(), x[wanted].astype(np.float16).astype(float) * 2)
    with pytest.raises(ValueError, match="ascending"):
        RowSample(torch.tensor([3, 3]), 6)


def test_random_features_approach_the_exact_mmd2() -> None:
    x, y = rows(300, 5, 0), rows(250, 5, 1, 0.5)
    frequencies = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 8192)) / 2)
    sums = []
    for part in (x, y):
        features = FourierFeatures(frequencies, torch.zeros(5))
        features.update(ActivationBatch(torch.from_numpy(part).float(), 0, "p"))
        done = features.finalize()
        sums += [done.count, done.total.numpy()]
    exact = mmd2(x, y, 4.0, level=0.5).value
    assert mmd2_features(*sums) == pytest.approx(exact, abs=0.01)
    assert exact > 0.05


def test_distance_end_to_end(tmp_path: Path) -> None:
    n, d = 90, 10
    label = ["cat", "dog", "owl"] * (n // 3 - 2) + ["cat"] * 3 + ["rare"] * 3
    x, z = rows(n, d, 0), rows(n, d, 1, 2.0)
    points = {"adapter_output": x, "llm_final": z}
    texts = {"text_embedding": rows(n, d, 2, 1.5), "llm_final": z}
    modal = write(tmp_path / "m.zarr", points, {"kind": label})
    text = write(tmp_path / "t.zarr", texts, {"kind": label})
    result = distance(modal, text, samples=40, bootstrap=8, pca=4, projections=6, features=32, label="kind",
                      n_jobs=1)  # fmt: skip
    far, same = result.pair("adapter_output"), result.pair("llm_final")
    assert (far.text_point, far.rows, far.n, far.n_text, far.width) == ("text_embedding", "pooled", n, n, d)
    assert same.gaussian_w2 == pytest.approx(0, abs=1e-3)
    assert same.sliced == 0
    assert same.cka == pytest.approx(1)
    assert far.w1 is not None
    assert far.w1.low < far.w1.value < far.w1.high
    assert far.w1.value > 1.2 * (far.w1_floor or 0) > 0
    assert far.sliced is not None
    a, b = x.astype(np.float32), texts["text_embedding"].astype(np.float32)
    directions = np.random.default_rng([42, 2]).standard_normal((d, 6))
    directions /= np.linalg.norm(directions, axis=0)
    expected, error = sliced_w1(a @ directions, b @ directions)
    assert (far.sliced, far.sliced_error) == pytest.approx((expected, error), rel=1e-4)
    assert far.participation == pytest.approx(np.trace(np.cov(a.T)) ** 2 / np.sum(np.cov(a.T) ** 2), rel=1e-5)
    in_groups = distance(modal, text, measures=["sliced"], projections=6, memory=1_000_000, n_jobs=1)
    assert in_groups.pair("adapter_output").sliced == pytest.approx(far.sliced, rel=1e-6)
    assert in_groups.pair("adapter_output").w1 is None
    kinds = {c.label: c for c in result.classes if c.point == "adapter_output"}
    assert kinds["rare"].w1 is None
    assert "extract more samples" in kinds["rare"].message
    assert kinds["cat"].w1 is not None
    assert (kinds["cat"].n, len(result.tables())) == (31, 2)
    save_result(result, tmp_path / "d.json")
    again = load_result(tmp_path / "d.json")
    assert json.dumps(again.to_json()) == json.dumps(result.to_json())
    assert "vega" in json.dumps(result.figure().to_dict())


def test_several_passes_give_the_same_sliced_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modegap.analyses.distance import pair

    modal = write(tmp_path / "m.zarr", {"llm_final": rows(40, 6, 0)})
    text = write(tmp_path / "t.zarr", {"llm_final": rows(40, 6, 1, 1.0)})
    once = distance(modal, text, measures=["sliced"], projections=7).pair("llm_final")
    groups = pair._groups
    monkeypatch.setattr(pair, "_groups", lambda directions, most: groups(directions, 3))
    thrice = distance(modal, text, measures=["sliced"], projections=7).pair("llm_final")
    assert (thrice.sliced, thrice.sliced_error) == pytest.approx((once.sliced, once.sliced_error), rel=1e-6)


def test_what_cannot_be_computed_says_so_and_the_rest_goes_on(tmp_path: Path) -> None:
    flat = np.ones((30, 6))
    modal = write(
        tmp_path / "m.zarr", {"llm_hidden_1": flat, "llm_final": rows(30, 6, 1), "other": rows(30, 5, 1)}
    )
    text = write(
        tmp_path / "t.zarr",
        {"llm_hidden_1": np.ones((30, 6)), "llm_final": rows(30, 6, 4), "other": rows(30, 6, 1)},
    )
    result = distance(modal, text, samples=10, bootstrap=0, projections=2, features=4)
    constant = result.pair("llm_hidden_1")
    assert "kernel has no width" in constant.messages[0]
    assert "CKA: one side" in constant.messages[1]
    assert (constant.mmd2, constant.cka, constant.sliced, constant.participation) == (None, None, 0, 0)
    assert "two spaces" in result.pair("other").messages[0]
    fine = result.pair("llm_final")
    assert fine.w1 is not None
    assert np.isnan(fine.w1.low)
    assert fine.cka is not None
    other = distance(modal, write(tmp_path / "v.zarr", {"llm_final": rows(20, 6, 0)}), samples=9, bootstrap=0)
    assert "do not hold the same samples" in other.pairs[0].messages[0]
    assert other.pairs[0].cka is None
    assert any("llm_hidden_1: " in note for note in result.table().notes)
    with pytest.raises(StoreError, match="share no hook point"):
        distance(modal, write(tmp_path / "u.zarr", {"elsewhere": rows(30, 6, 0)}))
    with pytest.raises(StoreError, match="colour"):
        distance(modal, text, label="colour")
    with pytest.raises(ValueError, match="measures"):
        DistanceConfig(measures=("emd",))
