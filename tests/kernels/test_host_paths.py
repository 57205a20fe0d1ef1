"""Host paths at the edges: bias, range, cancellation, odd shapes, poisoned memory, threads, autograd's modes."""

import gc
import math
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modegap import kernels
from modegap.kernels import host, threads
from modegap.kernels.ablate import cpu as ablate_host

EPS32 = 2.0**-24


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(d, k, seed=1):
    return torch.linalg.qr(randn(d, k, seed=seed, dtype=torch.float64))[0]


@pytest.fixture(params=["default", "BLAS"])
def engine(request, monkeypatch):
    if request.param == "BLAS":
        monkeypatch.setattr(host, "onednn_refusal", lambda: "test")


@pytest.fixture
def poison(monkeypatch):
    """Memory that a path did not write reads as NaN: fresh tensors, and scratch at every use."""
    empty, get = torch.empty, threads.Workspace.get

    def poisoned(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(math.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(threads.Workspace, "get", lambda *args: get(*args).fill_(math.nan))


def ragged(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def every_operation(d, n):
    """Results of all host operations on n rows of width d in fp16, by name, with fp64 references."""
    x, y = randn(n, d, dtype=torch.float16), randn(n, 3, seed=1, dtype=torch.float16)
    U = orthonormal(d, min(5, d))
    wide, basis = x.double(), U.float().double()
    rows, other = (torch.empty(n, part.shape[1]) for part in (x, y))
    kernels.stage(x, torch.zeros(d), 1.0, rows)
    kernels.stage(y, torch.zeros(3), 1.0, other)
    gram, product = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, 3, dtype=torch.float64)
    kernels.covariance_update(rows, gram)
    kernels.mirror_lower(gram)
    exact = torch.zeros(min(d, 1152), min(d, 1152), dtype=torch.float64)
    kernels.covariance_update(wide[:, : len(exact)], exact, mode="exact")
    kernels.mirror_lower(exact)
    energy = torch.zeros(U.shape[1], dtype=torch.float64)
    kernels.cross_update(rows, other, product)
    kernels.projection_energy(x, U.float(), energy)
    norms, means = kernels.gradient_norms(x, ragged([1, n - 1]), U.float())
    parts = [wide[:1], wide[1:]]
    mask = torch.arange(n) % 3 != 1
    a, g = x[None, :, : d // 2 + 1], x[None, :, d // 2 :]
    S = wide.T @ wide
    return {
        "covariance_update": (gram, S),
        "covariance_update exact": (exact, S[: len(exact), : len(exact)]),
        "cross_update": (product, wide.T @ y.double()),
        "rayleigh": (kernels.rayleigh(U, S), ((S @ U) * U).sum(0)),
        "projection_energy": (energy, (wide @ basis).square().sum(0)),
        "ablate": (kernels.ablate(x, U.float()).double(), (wide - wide @ U @ U.T).half().double()),
        "gradient_norms": (norms, torch.stack([p.norm() for p in parts])),
        "gradient_norms means": (means, torch.stack([p.mean(0) for p in parts]) @ basis),
        "masked_mean": (kernels.masked_mean(x[None], mask[None])[0], wide[mask].mean(0)),
        "ghost_norms": (kernels.ghost_norms(a, g), (a[0].double().T @ g[0].double()).norm()[None]),
        "absmax": (kernels.absmax(x), wide.abs().amax(0)),
    }


def compare(d, n):
    for name, (got, want) in every_operation(d, n).items():
        assert got.shape == want.shape, name
        gap = (got.double() - want).abs().max()
        if name == "ablate":  # all may be removed: then rounding is that of the states, 5 at most
            assert gap <= 2e-6 * 5 + torch.finfo(torch.float16).eps * want.abs().max()
        else:
            assert gap <= 2e-6 * want.abs().max(), name
        if name.startswith("covariance"):
            assert torch.equal(got, got.T)
        assert kernels.last_path(name.split()[0]).name == "cpu", name


@pytest.mark.parametrize(
    ("d", "n"), [(1, 2), (37, 129), (1152, 131), (3584, 67), (5120, 33)], ids=lambda v: str(v)
)
def test_odd_shapes_and_poisoned_memory(d, n, engine, poison):
    compare(d, n)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(d=st.integers(1, 90), n=st.integers(2, 400))
def test_any_shape(d, n, poison):
    compare(d, n)


def test_no_rows():
    out = torch.full((2, 5), math.nan)
    kernels.stage(torch.zeros(0, 5).half(), torch.zeros(5), 1.0, out)
    assert out.isnan().all()
    assert kernels.masked_mean(torch.zeros(0, 4, 5), torch.zeros(0, 4, dtype=torch.bool)).shape == (0, 5)
    exact = torch.ones(5, 5, dtype=torch.float64)
    kernels.covariance_update(torch.zeros(0, 5, dtype=torch.float64), exact, mode="exact")
    assert (exact == 1).all()


def test_threads_change_no_bit(engine):
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(every_operation(700, 900))
    finally:
        torch.set_num_threads(before)
    for name, (got, _) in found[0].items():
        assert torch.equal(got, found[1][name][0]), name


def test_many_rows_keep_the_diagonal_unbiased():
    """More rows than 2^19, in one call: flushes into fp64 leave no drift."""
    n = 600_001
    x = (randn(n, 6) + torch.tensor([0.0, 0.0, 2.0, 3.0, -3.0, 8.0])).half()
    gram = torch.zeros(6, 6, dtype=torch.float64)
    rows = torch.empty(n, 6)
    kernels.stage(x, kernels.shift_of(x[:4096]), 1.0, rows)
    kernels.covariance_update(rows, gram)
    want = rows.double().square().sum(0)
    error = gram.diagonal() / want - 1
    assert error.abs().max() <= 1e-6
    assert abs(error.mean()) <= 5e-7
    energy = torch.zeros(6, dtype=torch.float64)
    kernels.projection_energy(rows, torch.eye(6), energy)
    assert ((energy / want - 1).abs() <= 1e-6).all()
    norms, _ = kernels.gradient_norms(x, ragged([n]))
    assert abs(float(norms) / float(x.double().norm()) - 1) <= 1e-7
    mean = kernels.masked_mean(x[None], torch.ones(1, n, dtype=torch.bool))[0]
    assert ((mean - x.double().mean(0)).abs() <= 1e-6 * x.double().abs().mean(0)).all()


class TestGradientNorms:
    @pytest.mark.parametrize("value", [1.3333, 2047 / 1024, 0.1, 300.0])
    def test_equal_squares_that_all_round_one_way(self, value):
        """One chain of 2^17 such squares is off by up to 3e-5 in numpy's dot, 2e-4 in torch's norm."""
        g = torch.full((160, 1000), value).half()
        norms, _ = kernels.gradient_norms(g, ragged([160]))
        assert abs(float(norms) / float(g.double().norm()) - 1) <= 2 * EPS32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("size", [1e-36, 1e-25, 1e-20, 1e19, 1e30])
    def test_squares_beyond_fp32(self, dtype, size):
        g = (randn(300, 600) * size).to(dtype)
        U = orthonormal(600, 4).float()
        norms, means = kernels.gradient_norms(g, ragged([100, 200]), U)
        parts = [part.double() for part in g.split([100, 200])]
        want = torch.stack([part.norm() for part in parts])
        assert ((norms / want - 1).abs() <= 2 * EPS32).all()
        exact = torch.stack([part.mean(0) for part in parts]) @ U.double()
        assert ((means - exact).abs() <= 1e-6 * exact.abs().max()).all()

    def test_zeros_and_strides(self):
        g = randn(50, 40, dtype=torch.float16)
        g[:20] = 0
        norms, means = kernels.gradient_norms(g[:, ::2], ragged([20, 30]), torch.eye(20)[:, :3])
        assert norms[0] == 0
        assert means[0].tolist() == [0.0] * 3
        assert float(norms[1]) == pytest.approx(float(g[20:, ::2].double().norm()), rel=1e-7)


class TestGhostNorms:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize(("T", "d", "p"), [(1, 5, 7), (70, 130, 90), (600, 640, 520), (300, 40, 16)])
    def test_against_the_oracle(self, dtype, T, d, p, engine):
        from modegap.kernels.ghost_norms import reference

        a, g = randn(3, T, d, dtype=dtype), (randn(3, T, p, seed=1) * 1e-3).to(dtype)
        a[1, T // 2 :] = 0
        want = reference.ghost_norms(a, g)
        error = (kernels.ghost_norms(a, g) - want).abs()
        assert (error <= (1e-13 if dtype is torch.float64 else 1e-6) * want).all()
        way = "entries" if T * (d + p) > 2 * d * p else "Gram"
        assert kernels.last_path("ghost_norms").why.startswith(way)

    def test_contributions_that_cancel_are_done_by_entries(self):
        """|A'G| is 1e-4 of what its positions add up to; the Gram way alone leaves an error of 1e-3."""
        a, g = randn(1, 128, 512), randn(1, 128, 512, seed=1)
        a[:, 64:], g[:, 64:] = a[:, :64], -g[:, :64] * (1 - 1e-4)
        want = (a[0].double().T @ g[0].double()).norm()
        assert abs(float(kernels.ghost_norms(a, g)) / want - 1) <= 1e-4
        left, right = a[0] @ a[0].T, g[0] @ g[0].T
        assert abs(math.sqrt(abs(float((left * right).sum()))) / want - 1) > 1e-3

    @pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15])
    def test_fp32_is_not_the_limit(self, size):
        a, g = randn(2, 40, 64) * size, randn(2, 40, 64, seed=1) * size
        want = (a.double().mT @ g.double()).flatten(1).norm(dim=1)
        assert ((kernels.ghost_norms(a, g) / want - 1).abs() <= 1e-6).all()

    @pytest.mark.parametrize("r", [1, 8, 40])
    @pytest.mark.parametrize("size", [1.0, 1e-9])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_lora(self, r, size, dtype):
        """Thin ranks, ranks that are not, and gradients too small for fp32's squares."""
        x, g = randn(2, 50, 96, dtype=dtype), randn(2, 50, 80, seed=1, dtype=dtype)
        down, up = randn(r, 96, seed=2) * size, randn(80, r, seed=3) * size**2
        of_down, of_up = kernels.lora_norms(x, g, down, up, scaling=-2.0)
        xx, gg = x.double(), g.double()
        for b in range(2):
            want = 2 * ((gg[b] @ up.double()).T @ xx[b]).norm()
            assert float(of_down[b]) == pytest.approx(float(want), rel=2e-6)
            want = 2 * (gg[b].T @ (xx[b] @ down.double().T)).norm()
            assert float(of_up[b]) == pytest.approx(float(want), rel=2e-6)

    def test_bad_lora(self):
        with pytest.raises(ValueError, match="expected one dtype"):
            kernels.lora_norms(randn(1, 9, 4), randn(1, 9, 5).half(), randn(2, 4), randn(5, 2))

    def test_no_samples(self):
        assert kernels.ghost_norms(torch.zeros(0, 3, 4), torch.zeros(0, 3, 5)).shape == (0,)
        assert kernels.ghost_norms(torch.zeros(2, 0, 4), torch.zeros(2, 0, 5)).tolist() == [0.0, 0.0]


class TestAblate:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("n", [7, 70])
    def test_gradients_of_the_host_path(self, dtype, n):
        U = orthonormal(48, 5).float()
        z = randn(2, n, 48, dtype=dtype).requires_grad_()
        out = kernels.ablate(z, U)
        assert kernels.last_path("ablate").name == "cpu"
        weight = randn(2, n, 48, seed=3, dtype=dtype)
        out.backward(weight)
        want = weight.double() - (weight.double() @ U.double()) @ U.double().T
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(z.grad.double(), want, rtol=0, atol=4 * unit)

    def test_second_derivatives(self, monkeypatch):
        monkeypatch.setattr(ablate_host, "_FEW", 0)
        U = orthonormal(6, 2)
        z = randn(3, 6, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: kernels.ablate(z, U), z)
        assert torch.autograd.gradgradcheck(lambda z: kernels.ablate(z, U) ** 2, z)

    def test_under_vmap(self):
        U, z = orthonormal(16, 3).float(), randn(200, 16, 4)
        found = torch.func.vmap(lambda row: kernels.ablate(row, U), in_dims=2)(z)
        torch.testing.assert_close(found, kernels.ablate(z.movedim(2, 0), U), rtol=0, atol=0)
        few = torch.func.vmap(lambda row: kernels.ablate(row, U), in_dims=2)(z[:2])
        torch.testing.assert_close(few, found[:, :2], rtol=0, atol=1e-6)
        grads = torch.func.vmap(torch.func.grad(lambda row: kernels.ablate(row, U).square().sum()))(z.mT)
        torch.testing.assert_close(grads, 2 * kernels.ablate(z.mT, U), rtol=0, atol=1e-5)

    def test_one_token_and_none(self):
        U, z = orthonormal(64, 4).float(), randn(1, 1, 64, dtype=torch.float16)
        exact = z.double() - (z.double() @ U.double()) @ U.double().T
        assert (kernels.ablate(z, U).double() - exact).abs().max() <= 2.0**-11 * exact.abs().max()
        assert kernels.ablate(z[:, :0], U).shape == (1, 0, 64)
        assert kernels.ablate(torch.zeros(3, 0), torch.zeros(0, 0)).shape == (3, 0)

    def test_what_is_kept_for_a_basis_follows_it_and_goes_with_it(self):
        U = orthonormal(32, 4).float()
        z = randn(100, 32)
        kernels.ablate(z, U)
        with torch.no_grad():
            U.copy_(orthonormal(32, 4, seed=8))
        assert (kernels.ablate(z, U) @ U).abs().max() < 1e-5
        gone, kept = weakref.ref(U), weakref.ref(ablate_host._prepared[U][2])
        assert kept() is not None
        del U
        gc.collect()
        kernels.ablate(
            z, orthonormal(32, 4, seed=9).float()
        )  # a removal that was put off happens at the next entry
        gc.collect()
        assert gone() is None
        assert kept() is None


class TestModesOfAutograd:
    def test_inference_mode_inside_and_then_outside(self):
        """Scratch and bases made in inference mode must serve outside of it, in every thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            with torch.inference_mode():
                U = orthonormal(64, 3).float()
                inside = every_operation(64, 300)
                kernels.ablate(randn(100, 64), U)
                workspace = kernels.Workspace()
                gram = torch.zeros(64, 64, dtype=torch.float64)
                kernels.covariance_update(randn(300, 64), gram, workspace=workspace)
            outside = every_operation(64, 300)
            for name, (got, _) in inside.items():
                assert torch.equal(got, outside[name][0]), name
            kernels.ablate(randn(100, 64), U)
            fresh = torch.zeros(64, 64, dtype=torch.float64)
            kernels.covariance_update(randn(300, 64), fresh, workspace=workspace)
            assert torch.equal(fresh, gram)
        finally:
            torch.set_num_threads(before)

    def test_what_requires_grad_gets_its_gradient(self):
        U, S = orthonormal(20, 3), torch.eye(20, dtype=torch.float64, requires_grad=True)
        kernels.rayleigh(U, S).sum().backward()
        torch.testing.assert_close(S.grad, U @ U.T)
        x = randn(2, 5, 4).requires_grad_()
        kernels.masked_mean(x, torch.ones(2, 5, dtype=torch.bool)).sum().backward()
        torch.testing.assert_close(x.grad, torch.full((2, 5, 4), 0.2))
        with torch.no_grad():
            kernels.masked_mean(x, torch.ones(2, 5, dtype=torch.bool))
        assert kernels.last_path("masked_mean").name == "cpu"


class TestThreads:
    def test_workers_stay_and_grow(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(threads, "_held", [])
        threads.parallel(lambda _: None, range(5))
        (first,) = threads._held
        threads.parallel(lambda _: None, range(5))
        assert threads._held[0] is first
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        threads.parallel(lambda _: None, range(5))
        assert threads._held[0][0] == 3

    def test_nested_and_concurrent_calls_end(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        seen = []

        def outer(i):
            threads.parallel(lambda j: seen.append((i, j)), range(20))

        with ThreadPoolExecutor(4) as callers:
            for done in [callers.submit(threads.parallel, outer, range(6)) for _ in range(4)]:
                done.result(timeout=60)
        assert len(seen) == 4 * 6 * 20

    def test_an_error_stops_what_has_not_started(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        seen = []

        def work(i):
            seen.append(i)
            if i == 3:
                raise ZeroDivisionError("task 3")

        with pytest.raises(ZeroDivisionError, match="task 3"):
            threads.parallel(work, range(100_000))
        assert len(seen) < 100_000
        threads.parallel(seen.append, range(3))

    def test_blas_limit_is_lifted_by_the_last(self):
        def limits():
            return [m["num_threads"] for m in threads.thread_limits().info() if m["user_api"] == "blas"]

        before = limits()
        first, second = threads.blas_alone(), threads.blas_alone()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(limits()) == {1}
        second.__exit__(None, None, None)
        assert limits() == before

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_forked_child_starts_its_own_workers(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        threads.parallel(lambda _: None, range(5))
        child = os.fork()
        if child == 0:
            seen = []
            threads.parallel(seen.append, range(50))
            os._exit(0 if sorted(seen) == list(range(50)) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
