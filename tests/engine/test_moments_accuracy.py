"""The accuracy contract, against fp64 on the same stored rows."""

from functools import cache

import numpy as np
import pytest
import torch

from modegap.engine.batch import ActivationBatch, PairedBatch
from modegap.engine.moments import ClassMoments, CrossMoments, Moments, ProjectionEnergy
from modegap.kernels import host

ROWS, WIDTH = 20_000, 256


@pytest.fixture(autouse=True)
def one_thread():
    """For speed on a busy machine; test_threads_change_no_bit uses more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(x, start=0, **columns):
    return ActivationBatch(torch.from_numpy(x), start, "point", **columns)


@cache
def drawn(ratio, *, rows=ROWS, width=WIDTH, seed=0, correlated=False):
    """fp16 rows with channel scales over three decades and |mean|/std = ratio."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-1.5, 1.5, width)
    x = rng.standard_normal((rows, width))
    if correlated:
        x += rng.standard_normal((rows, 4)) @ rng.standard_normal((4, width))
    x = x / x.std(0) * scale + ratio * scale * rng.choice([-1.0, 1.0], width)
    return np.clip(x, -65000, 65000).astype(np.float16)


def run(reduction, x):
    reduction.update(batch(x))
    return reduction.finalize()


@cache
def reference(ratio):
    return np.cov(drawn(ratio, correlated=ratio < 64).astype(np.float64).T)


def errors(found, exact):
    spread = np.sqrt(np.diag(exact))
    correlation = exact / np.outer(spread, spread)
    gap = (found - exact) / np.outer(spread, spread)
    eigen = np.linalg.eigvalsh(correlation + gap) / np.linalg.eigvalsh(correlation) - 1
    return np.abs(gap).max(), np.diag(gap).mean(), np.abs(eigen).max()


@pytest.mark.parametrize("ratio", [0, 1, 8, 64, 1024])
@pytest.mark.parametrize("engine", ["default", "BLAS"])
def test_precise_keeps_the_contract(ratio, engine, monkeypatch):
    if engine == "BLAS":
        monkeypatch.setattr(host, "onednn_refusal", lambda: "test")
    x, exact = drawn(ratio, correlated=ratio < 64), reference(ratio)
    result = run(Moments(), x)
    found = result.covariance.numpy()
    worst, bias, eigen = errors(found, exact)
    assert worst <= 3e-6
    assert abs(bias) <= 1e-6
    assert eigen <= 5e-6
    assert np.array_equal(found, found.T)
    assert result.audit_error <= worst + 1e-12
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(0), atol=1e-7 * np.sqrt(exact.max()))
    assert np.array_equal(result.absmax, np.abs(x).max(0).astype(np.float32))
    assert result.certificate.audit_error == result.audit_error
    assert result.certificate.kernel_paths["covariance_update"]["name"] == "cpu"


@pytest.mark.parametrize("ratio", [2.0, 2.9, 3.1, 4.0, 5.0, 6.0])
def test_precise_keeps_the_contract_around_the_threshold_of_the_shift(ratio):
    x = drawn(ratio, rows=8192, width=64)
    worst, bias, _ = errors(run(Moments(), x).covariance.numpy(), np.cov(x.astype(np.float64).T))
    assert worst <= 3e-6
    assert abs(bias) <= 1e-6


def test_worst_relative_eigenvalue_of_a_spectrum_graded_by_channel():
    x = drawn(0, width=128)
    exact = np.cov(x.astype(np.float64).T)
    found = np.linalg.eigvalsh(run(Moments(), x).covariance.numpy())
    want = np.linalg.eigvalsh(exact)
    assert want[-1] / want[0] > 1e5
    assert np.abs(found / want - 1).max() <= 5e-6


def test_the_obvious_fp32_loop_breaks_the_contract():
    x = drawn(64, rows=4096, width=64).astype(np.float32)
    gram, total = x.T @ x, x.sum(0)
    naive = (gram - np.outer(total, total) / len(x)) / (len(x) - 1)
    worst, _, _ = errors(naive.astype(np.float64), np.cov(x.astype(np.float64).T))
    assert worst > 1e-5


@pytest.mark.parametrize("width", [1, 37, 255])
@pytest.mark.parametrize("ratio", [0, 64])
def test_exact_is_numpy_in_fp64(width, ratio):
    x = drawn(ratio, rows=3000, width=width)
    exact = np.atleast_2d(np.cov(x.astype(np.float64).T))
    result = run(Moments("exact"), x)
    spread = np.sqrt(np.diag(exact))
    assert (np.abs(result.covariance.numpy() - exact) <= 1e-12 * np.outer(spread, spread)).all()
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(0), rtol=1e-13)
    assert result.audit_error <= 1e-13


def test_exact_resolves_what_precise_cannot():
    """A spectrum graded by a rotation: small eigenvalues inherit 1e-6 of the large ones from fp32 sums."""
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    x = (rng.standard_normal((8000, 64)) * np.logspace(0, -7, 64) @ rotation).astype(np.float32)
    want = np.linalg.eigvalsh(np.cov(x.astype(np.float64).T))
    precise = np.linalg.eigvalsh(run(Moments(), x).covariance.numpy())
    exact = np.linalg.eigvalsh(run(Moments("exact"), x).covariance.numpy())
    assert np.abs(exact / want - 1).max() < 1e-2
    assert np.abs(precise / want - 1).max() > 1e-1


@pytest.mark.parametrize("mode", ["precise", "fast", "exact"])
def test_fp32_and_large_values(mode):
    x = (np.random.default_rng(0).standard_normal((3000, 40)) * 300 + 1e5).astype(np.float32)
    exact = np.cov(x.astype(np.float64).T)
    result = run(Moments(mode), x)
    assert errors(result.covariance.numpy(), exact)[0] <= (1e-11 if mode == "exact" else 3e-5)
    assert result.overflow_count == (np.abs(x) > 65504).sum()


def test_scaled_chunks_are_exact_up_to_the_rounding_of_their_sums():
    x = drawn(8, rows=3000, width=50, seed=4)
    moments = Moments(block_rows=512)
    moments.update(batch(x[:1000]))
    moments.update(batch(x[1000:2000], 1000, scale=4.0))
    moments.update(batch(x[2000:], 2000))
    true = x.astype(np.float64)
    true[1000:2000] *= 4
    result = moments.finalize()
    worst, _, _ = errors(result.covariance.numpy(), np.cov(true.T))
    assert worst <= 3e-6
    assert result.overflow_count == (np.abs(true) > 65504).sum()
    np.testing.assert_array_equal(result.absmax, np.abs(true).max(0))


@pytest.mark.parametrize("mode", ["precise", "exact"])
def test_cross(mode):
    x, y = drawn(8, rows=5000, width=60), drawn(0, rows=5000, width=45, seed=1, correlated=True)
    y = np.concatenate([y[:, :10] + x[:, :10], y[:, 10:]], axis=1)
    reduction = CrossMoments(mode)
    reduction.update(PairedBatch(batch(x), ActivationBatch(torch.from_numpy(y), 0, "other")))
    result = reduction.finalize()
    both = np.cov(x.astype(np.float64).T, y.astype(np.float64).T)
    exact, spread = both[:60, 60:], np.sqrt(np.diag(both))
    gap = np.abs(result.cross_covariance.numpy() - exact) / np.outer(spread[:60], spread[60:])
    assert gap.max() <= (1e-12 if mode == "exact" else 3e-6)
    assert result.audit_error == pytest.approx(gap.max(), abs=1e-12)
    np.testing.assert_allclose(result.mean_y, y.astype(np.float64).mean(0), atol=1e-6)


@pytest.mark.parametrize("mode", ["precise", "exact"])
def test_classes(mode):
    x = drawn(8, rows=4000, width=30)
    labels = np.random.default_rng(0).integers(-1, 4, 400)
    labels[labels == 2] = 3  # class 2 stays empty
    sample = np.repeat(np.arange(400), 10)
    reduction = ClassMoments(labels, 5, mode)
    reduction.update(batch(x, sample=torch.from_numpy(sample)))
    result = reduction.finalize()
    code = labels[sample]
    kept = x[code >= 0].astype(np.float64)
    code = code[code >= 0]
    exact = np.cov(kept.T)
    tolerance = 1e-12 if mode == "exact" else 3e-6
    assert errors(result.covariance.numpy(), exact)[0] <= tolerance
    assert result.class_count.tolist() == np.bincount(code, minlength=5).tolist()
    assert result.count == len(kept)
    assert result.class_mean[2].isnan().all()
    assert result.class_mean[4].isnan().all()
    spread = np.sqrt(np.diag(exact))
    between, within = np.zeros((30, 30)), np.zeros((30, 30))
    for c in (0, 1, 3):
        rows = kept[code == c]
        offset = rows.mean(0) - kept.mean(0)
        assert (np.abs(result.class_mean[c].numpy() - rows.mean(0)) <= tolerance * spread).all()
        between += len(rows) * np.outer(offset, offset) / (len(kept) - 1)
        within += (len(rows) - 1) * np.cov(rows.T) / (len(kept) - 1)
    for found, want in ((result.between(), between), (result.within(), within)):
        assert (np.abs(found.numpy() - want) <= 2 * tolerance * np.outer(spread, spread)).all()
    u = np.linalg.eigh(exact)[1][:, -1]
    energy = (result.between_factor().T @ torch.from_numpy(u)).square().sum()
    assert float(energy) == pytest.approx(u @ between @ u, rel=1e-5)


@pytest.mark.parametrize("mode", ["precise", "exact"])
def test_projection_energy_about_a_large_mean(mode):
    x = drawn(8, rows=6000, width=80, correlated=True)
    exact = np.cov(x.astype(np.float64).T)
    values, vectors = np.linalg.eigh(exact)
    U = torch.from_numpy(vectors[:, ::-1][:, :40].copy())
    result = run(ProjectionEnergy(U, mode), x)
    want = values[::-1][:40]
    share = want / np.trace(exact)
    tolerance = np.full(40, 1e-10) if mode == "exact" else 1e-6 / np.sqrt(share)
    error = np.abs(result.variance.numpy() / want - 1)
    assert (error <= tolerance).all()
    assert result.audit_error <= error.max() * 1.5 + 1e-9
    np.testing.assert_allclose(result.mean, x.astype(np.float64).mean(0) @ U.numpy(), rtol=1e-6, atol=1e-5)


def test_audit_sees_a_broken_kernel(monkeypatch):
    import modegap.engine.moments.moments as module

    def broken(rows, gram, **kwargs):
        path = original(rows, gram, **kwargs)
        gram.mul_(1.0 - 1e-3)
        return path

    original = module.covariance_update
    monkeypatch.setattr(module, "covariance_update", broken)
    assert run(Moments(), drawn(0, rows=1000, width=20)).audit_error > 5e-4


def test_threads_change_no_bit():
    x = drawn(8, rows=3000, width=700)
    before = torch.get_num_threads()
    try:
        one = run(Moments(), x)
        for threads in (
            1,
            2,
            3,
        ) * 6:  # a share of the work that goes elsewhere by chance shows in a few of these
            torch.set_num_threads(threads)
            assert torch.equal(one.covariance, run(Moments(), x).covariance)
    finally:
        torch.set_num_threads(before)
