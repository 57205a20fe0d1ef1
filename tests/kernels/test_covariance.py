"""The Gram kernels against the fp64 oracle, on both host engines."""

import math

import numpy as np
import pytest
import torch

from modegap import kernels
from modegap.kernels import host


@pytest.fixture(params=["default", "BLAS"])
def engine(request, monkeypatch):
    if request.param == "BLAS":
        monkeypatch.setattr(host, "onednn_refusal", lambda: "test")
    return request.param


def poisoned(*shape, dtype=torch.float32):
    return torch.full(shape, math.nan, dtype=dtype)


def staged(x, shift=None, scale=1.0, dtype=torch.float32):
    out = poisoned(len(x) + 3, x.shape[1], dtype=dtype)
    kernels.stage(x, torch.zeros(x.shape[1]) if shift is None else shift, scale, out)
    assert out[len(x) :].isnan().all()
    return out[: len(x)]


@pytest.mark.parametrize("n", [0, 1, 2, 127, 128, 129, 2048, 2049, 5000])
@pytest.mark.parametrize("d", [1, 37, 300])
def test_precise_gram(n, d, engine):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(n + d)).half()
    gram = torch.zeros(d, d, dtype=torch.float64)
    scratch = kernels.Workspace()
    for _ in range(2):  # accumulates, and reused scratch holds nothing of the first call
        path = kernels.covariance_update(staged(x), gram, workspace=scratch)
    assert path.name == "cpu"
    kernels.mirror_lower(gram)
    exact = 2 * x.double().T @ x.double()
    size = exact.diagonal().sqrt()
    assert torch.equal(gram, gram.T)
    assert ((gram - exact).abs() <= 1e-6 * torch.outer(size, size)).all()


@pytest.mark.parametrize("contiguous", [True, False])
def test_exact_gram_is_fp64(contiguous):
    x = torch.randn(3000, 65, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    memory = torch.zeros(65, 65 if contiguous else 70, dtype=torch.float64)
    gram = memory[:, :65]
    kernels.covariance_update(x, gram, mode="exact")
    kernels.mirror_lower(gram)
    exact = x.T @ x
    assert (gram - exact).abs().max() <= 1e-13 * exact.diagonal().max()


def test_short_chains_keep_the_variance_unbiased(engine):
    """At mean/std = 8 odd squares all round the same way in chains of 2,048 rows: -6e-6, see host.py."""
    rng = np.random.default_rng(0)
    scale = 10 ** rng.uniform(-2, 1, 96)
    x = torch.from_numpy((rng.standard_normal((8192, 96)) * scale + 8 * scale).astype(np.float16))
    shift = kernels.shift_of(x)
    assert (shift != 0).all()
    gram = torch.zeros(96, 96, dtype=torch.float64)
    kernels.covariance_update(staged(x, shift), gram)
    exact = (x.double() - shift.double()).square().sum(0)
    error = gram.diagonal() / exact - 1
    assert error.abs().max() < 5e-7
    assert abs(error.mean()) < 1e-7

    chained = torch.zeros(96, dtype=torch.float32)
    for row in staged(x, shift)[:2048]:
        chained += row * row
    naive = chained.double() / (x[:2048].double() - shift.double()).square().sum(0) - 1
    assert naive.abs().max() > 2e-6  # the trap exists


def test_lowered_matmul_precision_turns_onednn_off():
    x = torch.randn(500, 64)
    gram = torch.zeros(64, 64, dtype=torch.float64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert host.onednn_refusal()
        path = kernels.covariance_update(x, gram)
    finally:
        torch.set_float32_matmul_precision(before)
    assert path.why.startswith("BLAS")
    exact = x.double().T @ x.double()
    assert (gram - exact).tril().abs().max() < 1e-6 * exact.max()


@pytest.mark.parametrize(("n", "p", "q"), [(0, 3, 4), (1, 1, 1), (129, 65, 7), (4100, 40, 600)])
def test_cross(n, p, q, engine):
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(n, p, generator=generator), torch.randn(n, q, generator=generator)
    out = torch.ones(p, q, dtype=torch.float64)
    assert kernels.cross_update(a, b, out).name == "cpu"
    exact = 1 + a.double().T @ b.double()
    size = torch.outer(a.double().norm(dim=0), b.double().norm(dim=0))
    assert ((out - exact).abs() <= 1e-6 * size + 1e-15).all()
    wide = torch.zeros(p, q, dtype=torch.float64)
    kernels.cross_update(a.double(), b.double(), wide, mode="exact")
    assert ((wide + 1 - exact).abs() <= 1e-13 * size + 1e-15).all()


def test_mirror_lower_ignores_the_upper_triangle():
    gram = torch.randn(1100, 1100, dtype=torch.float64)
    lower = gram.tril()
    gram[~torch.ones(1100, 1100, dtype=torch.bool).tril()] = math.nan
    kernels.mirror_lower(gram)
    assert torch.equal(gram, lower + lower.tril(-1).T)


@pytest.mark.parametrize(
    ("rows", "gram", "mode", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 4, dtype=torch.float64), "precise", "gram: got shape"),
        (torch.zeros(4, 3), torch.zeros(3, 3), "precise", "expected float64"),
        (torch.zeros(4, 3).int(), torch.zeros(3, 3, dtype=torch.float64), "precise", "rows: got torch.int32"),
        (torch.zeros(4, 3), torch.zeros(3, 3, dtype=torch.float64), "exact", "in mode exact"),
        (torch.zeros(4, 3), torch.zeros(3, 3, dtype=torch.float64), "quick", "expected one of precise"),
        (torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64), "precise", "rows: got shape"),
        (torch.zeros(4, 3), torch.zeros(3, 3, dtype=torch.float64, device="meta"), "precise", "one device"),
        (torch.zeros(4, 3), torch.zeros(3, 6, dtype=torch.float64)[:, ::2], "precise", "row-major"),
    ],
)
def test_bad_arguments(rows, gram, mode, message):
    with pytest.raises(ValueError, match=message):
        kernels.covariance_update(rows, gram, mode=mode)


def test_parallel_runs_every_task_once_and_passes_errors_on():
    seen = []
    host.parallel(seen.append, range(100))
    assert sorted(seen) == list(range(100))
    with pytest.raises(ZeroDivisionError):
        host.parallel(lambda i: 1 // (i - 50), range(100))
    assert torch.get_num_threads() == host.torch.get_num_threads()


def test_parallel_leaves_torch_threads_alone(monkeypatch):
    before = torch.get_num_threads()
    inside = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    host.parallel(lambda i: inside.append(i), range(9))
    monkeypatch.undo()
    assert len(inside) == 9
    assert torch.get_num_threads() == before


def test_workspace_reuses_memory():
    scratch = kernels.Workspace()
    first = scratch.get("a", (10, 10), torch.float32)
    again = scratch.get("a", (5, 4), torch.float32)
    assert again.data_ptr() == first.data_ptr()
    assert scratch.nbytes == 400
    assert scratch.get("a", (5, 4), torch.float64).dtype == torch.float64
    assert scratch.nbytes == 160
