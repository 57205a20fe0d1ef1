from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from modegap.analyses.align.groups import Both, GroupMoments, GroupProjection, assign_groups
from modegap.analyses.align.interval import RatioGroups, bootstrap, jackknife
from modegap.analyses.align.spectrum import eigenpairs, oas_weight
from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import Moments
from modegap.engine.reduction_checks import check_reduction

Array = np.ndarray


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(rows: Array, samples: Array, scale: float = 1.0) -> ActivationBatch:
    return ActivationBatch(torch.from_numpy(rows), 0, "p", scale, torch.from_numpy(samples))


def moments(rows: Array, modes: Array, groups: int) -> GroupMoments:
    """Group moments of rows that are one sample each, groups in turn."""
    of_sample = np.arange(len(rows)) % groups
    reduction = GroupProjection(torch.from_numpy(modes), of_sample, groups)
    reduction.update(batch(rows, np.arange(len(rows))))
    return reduction.finalize()


def test_deleting_a_group_is_the_variance_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 5)) + 1e4  # a mean that would cancel everything in E[x^2] - E[x]^2
    modes = np.linalg.qr(rng.standard_normal((5, 3)))[0]
    of_sample, sample_of_row = rng.integers(0, 4, 50), np.sort(rng.integers(0, 50, 200))
    parts = []
    for piece in np.array_split(np.arange(200), 7):
        part = GroupProjection(torch.from_numpy(modes), of_sample, 4)
        part.update(batch(rows[piece] / 2, sample_of_row[piece], scale=2.0))
        parts.append(part)
    merged = parts[0].fresh()
    for part in reversed(parts):
        merged = merged.merge(part)
    restored = merged.fresh()
    restored.load_state_dict(merged.state_dict())
    found = restored.finalize().variance(1 - np.eye(4))
    group_of_row = of_sample[sample_of_row]
    for g in range(4):
        expected = (rows[group_of_row != g] @ modes).var(0, ddof=1)
        np.testing.assert_allclose(found[g], expected, rtol=1e-9)
    np.testing.assert_allclose(merged.finalize().variance(), (rows @ modes).var(0, ddof=1), rtol=1e-9)


def test_group_moments_are_a_monoid() -> None:
    rng = np.random.default_rng(2)
    modes, of_sample = np.linalg.qr(rng.standard_normal((4, 2)))[0], rng.integers(0, 5, 30)
    batches = [
        batch(rng.standard_normal((n, 4)).astype(np.float32) + 3, rng.integers(0, 30, n))
        for n in (40, 7, 25, 60)
    ]

    def projection() -> GroupProjection:
        return GroupProjection(torch.from_numpy(modes), of_sample, 5)

    check_reduction(projection, batches)
    check_reduction(lambda: Both(projection(), Moments(mode="exact")), batches)


def test_weights_repeat_groups() -> None:
    rng = np.random.default_rng(1)
    rows, modes = rng.standard_normal((60, 3)) * [3, 1, 2] + 5, np.eye(3)
    found = moments(rows, modes, 3).variance(np.array([2.0, 0.0, 1.0]))
    repeated = np.concatenate([rows[0::3], rows[0::3], rows[2::3]])
    np.testing.assert_allclose(found, repeated.var(0, ddof=1), rtol=1e-12)


def test_groups_are_even_and_follow_the_ids() -> None:
    ids = [f"s{i}" for i in range(103)]
    groups = assign_groups(ids, 20, seed=1)
    assert sorted(np.bincount(list(groups.values()))) == [5] * 17 + [6] * 3
    assert assign_groups(ids, 20, seed=1) == groups
    assert assign_groups(ids, 20, seed=2) != groups


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("method", ["jackknife", "bootstrap"])
def test_intervals_cover_at_the_nominal_rate(method: str, paired: bool) -> None:
    """Modes from each data set's own covariance, rho of the law they were drawn from as the truth."""
    rng = np.random.default_rng(7)
    modal_scales, text_scales = np.array([4.0, 2.0, 1.0]), np.array([1.0, 1.5, 2.0])
    truth = (text_scales / modal_scales) ** 2
    hits, repeats = np.zeros(3), 600
    for _ in range(repeats):
        shared = rng.standard_normal((400, 3))
        modal = shared * modal_scales
        other = (
            0.8 * shared + 0.6 * rng.standard_normal((400, 3)) if paired else rng.standard_normal((400, 3))
        )
        text = other * text_scales
        _, vectors = eigenpairs(torch.from_numpy(np.cov(modal.T)))
        groups = RatioGroups(moments(modal, vectors, 20), moments(text, vectors, 20), paired)
        rho = groups.text.variance() / groups.modal.variance()
        if method == "jackknife":
            low, high = jackknife(groups, rho, 0.95)
        else:
            low, high = bootstrap(groups, rho, 0.95, draws=200, seed=1)
        hits += (low <= truth) & (truth <= high)
    # Three standard errors of a binomial at 0.95 are 0.027; 20 bootstrapped groups fall short.
    assert (hits / repeats > 0.95 - (0.027 if method == "jackknife" else 0.07)).all(), hits / repeats
    assert (hits / repeats < 0.995).all(), hits / repeats


def test_fixed_modes_give_the_interval_of_a_bootstrap_that_refits_them() -> None:
    """Where the modes are well separated, refitting them in every draw adds little."""
    rng = np.random.default_rng(3)
    n, d = 800, 6
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    modal = rng.standard_normal((n, d)) * np.geomspace(8, 0.5, d) @ turn.T
    text = rng.standard_normal((n, d)) @ turn.T
    _, vectors = eigenpairs(torch.from_numpy(np.cov(modal.T)))
    groups = RatioGroups(moments(modal, vectors, 20), moments(text, vectors, 20), paired=True)
    rho = groups.text.variance() / groups.modal.variance()
    low, high = jackknife(groups, rho, 0.95)
    drawn = []
    for _ in range(600):
        pick = rng.integers(0, n, n)
        values, u = eigenpairs(torch.from_numpy(np.cov(modal[pick].T)))
        drawn.append(np.einsum("jk,ij,ik->k", u, np.cov(text[pick].T), u) / values)
    refit = np.diff(np.log(np.quantile(drawn, [0.025, 0.975], axis=0)), axis=0)[0]
    np.testing.assert_allclose(np.log(high / low), refit, rtol=0.4)
    assert np.mean(np.log(high / low) / refit) == pytest.approx(1, abs=0.15)


def test_eigenpairs_are_those_of_numpy_in_descending_order() -> None:
    rng = np.random.default_rng(0)
    matrix = np.cov(rng.standard_normal((5, 40)) @ rng.standard_normal((40, 300)))
    values, vectors = eigenpairs(torch.from_numpy(matrix.copy()))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1], rtol=1e-10)
    np.testing.assert_allclose(vectors * values @ vectors.T, matrix, atol=1e-10)


def test_oracle_approximating_shrinkage_beats_the_sample_covariance() -> None:
    rng = np.random.default_rng(0)
    scales = np.geomspace(2, 0.5, 60)
    truth = np.diag(scales**2)
    weights = []
    for n in (20, 60, 2000):
        sample = np.cov((rng.standard_normal((n, 60)) * scales).T)
        weight = oas_weight(np.trace(sample), (sample**2).sum(), n, 60)
        shrunk = (1 - weight) * sample + weight * np.trace(sample) / 60 * np.eye(60)
        assert np.linalg.norm(shrunk - truth) < np.linalg.norm(sample - truth)
        weights.append(weight)
    assert 1 > weights[0] > weights[1] > weights[2] > 0
    assert oas_weight(60.0, 60.0, 50, 60) == 1.0  # already the identity
