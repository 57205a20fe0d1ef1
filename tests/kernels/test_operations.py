"""The other host operations against their oracles; tolerances are multiples of what the arithmetic allows."""

import math

import pytest
import torch

from modegap import kernels
from modegap.kernels import host
from modegap.kernels.ablate import reference as ablate_oracle
from modegap.kernels.gradient_norms import reference as gradient_oracle
from modegap.kernels.masked_mean import reference as pooling_oracle
from modegap.kernels.stage import reference as stage_oracle

EPS32 = 2.0**-24


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(d, k, seed=1):
    return torch.linalg.qr(randn(d, k, seed=seed, dtype=torch.float64))[0]


class TestShiftAndStage:
    def test_shift_only_where_the_mean_dwarfs_the_spread(self):
        ratio = torch.tensor([0.0, 0.8, 1.6, 2.5, 8.0, -64.0, 1024.0])
        x = (randn(4000, 7) + ratio).half()
        shift = kernels.shift_of(x)
        assert (shift != 0).tolist() == [False, False, False, True, True, True, True]
        assert torch.equal(shift, shift.half().float())
        mean, std = x.double().mean(0), x.double().std(0)
        gap = (shift.double() - mean).abs()
        assert (gap <= torch.maximum(std / 4, mean.abs() * 2.0**-11))[shift != 0].all()
        assert torch.equal(shift, stage_oracle.shift_of(x))

    def test_values_up_to_the_limit_lose_no_bit_of_the_shift(self):
        ratio = torch.tensor([2.5, -3.0, 5.0, 30.0, -200.0, 1024.0])
        x = (randn(4000, 6) + ratio).half()
        shift = kernels.shift_of(x)
        limit = kernels.exact_up_to(shift)
        assert (limit > x.abs().max(0).values).all()
        for column, (c, top) in enumerate(zip(shift.tolist(), limit.tolist(), strict=True)):
            sign = 1 if c > 0 else -1
            far = torch.linspace(1.0, top, 400).half()
            far = far[(far <= top) & (far >= abs(c) / 2)] * sign
            assert ((far - c).double() == far.double() - c).all(), column
        # past it an fp16 value is coarser than the shift's lowest bit
        past = torch.tensor([limit[0] * 4 + 4]).half()
        assert ((past - shift[:1].half()).double() != past.double() - shift[:1].double()).item()
        assert kernels.exact_up_to(torch.zeros(2)).tolist() == [math.inf, math.inf]

    def test_constant_channels_vanish(self):
        x = torch.full((50, 2), 3.25).half()
        x[:, 1] = 0
        assert kernels.shift_of(x).tolist() == [3.25, 0.0]

    @pytest.mark.parametrize("n", [0, 1])
    def test_no_shift_from_fewer_than_two_rows(self, n):
        assert kernels.shift_of(torch.ones(n, 3).half()).tolist() == [0.0] * 3

    def test_a_mean_beyond_fp16_keeps_eleven_bits(self):
        shift = kernels.shift_of(torch.tensor([[1e6, -1e38]]).expand(9, 2))
        assert shift.tolist() == stage_oracle.shift_of(torch.tensor([[1e6, -1e38]]).expand(9, 2)).tolist()
        assert shift[0].item() == 999936.0
        assert abs(shift[1].item() / -1e38 - 1) <= 2.0**-11

    @pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("out", [torch.float32, torch.float64, torch.float16])
    @pytest.mark.parametrize("scale", [1.0, 4.0])
    def test_stage(self, given, out, scale):
        x = (randn(131, 33) + 8).to(given)
        before = x.clone()
        shift = torch.linspace(0, 32, 33).half().float()
        got, want = (torch.full((140, 33), math.nan, dtype=out) for _ in range(2))
        kernels.stage(x, shift, scale, got)
        stage_oracle.stage(x, shift, scale, want)
        assert got[131:].isnan().all()
        unit = {torch.float16: 2.0**-10, torch.float32: 2.0**-22, torch.float64: 2.0**-52}[out]
        torch.testing.assert_close(got[:131], want[:131], rtol=unit, atol=64 * 2.0**-23 if unit > 1e-8 else 0)
        assert torch.equal(x, before)

    def test_fp16_rows_are_staged_exactly(self):
        x = (randn(1000, 20) * 3 + 50).half()
        out = torch.full((1000, 20), math.nan)
        kernels.stage(x, torch.full((20,), 50.0), 2.0, out)
        assert torch.equal(out.double(), x.double() * 2 - 50)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scale": 3.0}, "power of two"),
            ({"scale": 0.0}, "power of two"),
            ({"shift": torch.zeros(4)}, "shift: got shape"),
            ({"out": torch.zeros(4, 3)}, "expected at least 5"),
            ({"out": torch.zeros(5, 4)}, "out: got shape"),
            ({"x": torch.zeros(5, 3).int()}, "x: got torch.int32"),
            ({"out": torch.zeros(5, 3, device="meta")}, "one device"),
        ],
    )
    def test_bad_arguments(self, changes, message):
        good = {"x": torch.zeros(5, 3), "shift": torch.zeros(3), "scale": 1.0, "out": torch.zeros(5, 3)}
        with pytest.raises(ValueError, match=message):
            kernels.stage(**{**good, **changes})


class TestAbsmax:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("n", [1, 64, 200])
    def test_exact(self, dtype, n):
        x = (randn(n, 13) * 100).to(dtype)
        assert torch.equal(kernels.absmax(x).double(), x.double().abs().amax(0))

    def test_no_rows(self):
        assert kernels.absmax(torch.zeros(0, 3).half()).tolist() == [0.0] * 3

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
    def test_what_is_not_finite_surfaces(self, dtype, bad):
        x = torch.ones(100, 3, dtype=dtype)
        x[77, 1] = bad
        assert kernels.absmax(x).isfinite().tolist() == [True, False, True]

    def test_subnormals_and_strides(self):
        x = torch.tensor([[-6e-8, 1.0, 65504.0, -2.0]]).half().expand(3, 4)[:, ::2]
        assert torch.equal(kernels.absmax(x), x[0].abs().float())


class TestRayleigh:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_against_the_definition(self, dtype):
        S = randn(90, 90, dtype=torch.float64)
        S = S @ S.T
        U = randn(90, 700, seed=2, dtype=dtype)
        want = torch.stack([u @ S @ u for u in U.double().T])
        torch.testing.assert_close(kernels.rayleigh(U, S), want, rtol=1e-12, atol=0)
        assert kernels.last_path("rayleigh").name == "cpu"
        assert kernels.rayleigh(U[:, :0], S).shape == (0,)

    def test_inputs_stay_and_bad_shapes_are_refused(self):
        U, S = randn(5, 2, dtype=torch.float64), randn(5, 5, dtype=torch.float64)
        kept = U.clone(), S.clone()
        kernels.rayleigh(U, S)
        assert torch.equal(U, kept[0])
        assert torch.equal(S, kept[1])
        with pytest.raises(ValueError, match="S: got shape"):
            kernels.rayleigh(U, S[:4])


class TestProjectionEnergy:
    @pytest.mark.parametrize("n", [0, 1, 513, 1500])
    @pytest.mark.parametrize("engine", ["default", "BLAS"])
    def test_against_the_oracle(self, n, engine, monkeypatch):
        if engine == "BLAS":
            monkeypatch.setattr(host, "onednn_refusal", lambda: "test")
        x, U = randn(n, 150, dtype=torch.float16), randn(150, 9, seed=3)
        out = torch.ones(9, dtype=torch.float64)
        assert kernels.projection_energy(x, U, out).name == "cpu"
        want = 1 + (x.double() @ U.double()).square().sum(0)
        assert ((out - want).abs() <= 20 * EPS32 * want).all()

    def test_fp64_rows(self):
        x, U = randn(700, 40, dtype=torch.float64), randn(40, 5, seed=3, dtype=torch.float64)
        out = torch.zeros(5, dtype=torch.float64)
        kernels.projection_energy(x, U, out)
        torch.testing.assert_close(out, (x @ U).square().sum(0), rtol=1e-13, atol=0)

    def test_bad_output(self):
        with pytest.raises(ValueError, match=r"expected \(2,\)"):
            kernels.projection_energy(
                torch.zeros(3, 4), torch.zeros(4, 2), torch.zeros(3, dtype=torch.float64)
            )


class TestAblate:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("k", [0, 1, 11, 96])
    def test_leakage_is_that_of_rounding(self, dtype, k):
        U = orthonormal(96, k) if k else torch.zeros(96, 0, dtype=torch.float64)
        z = randn(3, 211, 96, seed=4, dtype=dtype)
        before = z.clone()
        out = kernels.ablate(z, U if dtype is torch.float64 else U.float())
        exact = z.double() - (z.double() @ U) @ U.T
        rounded = exact.to(dtype).double()
        assert out.dtype == dtype
        assert out.shape == z.shape
        assert torch.equal(z, before)
        leak, floor = (out.double() @ U).norm(), (rounded @ U).norm()
        arithmetic = 1e-12 if dtype is torch.float64 else 2e-6
        assert leak <= 1.1 * floor + arithmetic * z.double().norm()
        slack = 1.01 if dtype in (torch.float16, torch.bfloat16) else 8  # else the arithmetic is no wider
        limit = slack * torch.finfo(dtype).eps * z.double().abs().max()
        assert (out.double() - exact).abs().max() <= limit

    def test_idempotent_and_orthogonal(self):
        U = orthonormal(64, 8)
        z = randn(100, 64, dtype=torch.float64)
        once = kernels.ablate(z, U)
        torch.testing.assert_close(kernels.ablate(once, U), once, rtol=0, atol=1e-14)
        assert (once @ U).abs().max() < 1e-14

    def test_gradients_flow(self):
        U, z = orthonormal(16, 3), randn(5, 16, dtype=torch.float64).requires_grad_()
        kernels.ablate(z, U).sum().backward()
        want = torch.ones(5, 16, dtype=torch.float64)
        torch.testing.assert_close(z.grad, want - (want @ U) @ U.T)

    def test_strided_input(self):
        U, z = orthonormal(16, 3).float(), randn(16, 7)
        want = ablate_oracle.ablate(z.T, U)
        torch.testing.assert_close(kernels.ablate(z.T, U), want, rtol=0, atol=8 * EPS32)

    def test_directions_that_are_not_orthonormal_are_refused(self):
        U = orthonormal(32, 4).float()
        kernels.ablate(torch.zeros(2, 32), U)
        U[:, 0] *= 1.01  # changed in place after it was accepted
        with pytest.raises(ValueError, match="not orthonormal"):
            kernels.ablate(torch.zeros(2, 32), U)
        U[:, 0] = math.nan
        with pytest.raises(ValueError, match="not orthonormal"):
            kernels.ablate(torch.zeros(2, 32), U)
        kernels.ablate(torch.zeros(2, 32).half(), orthonormal(32, 4).half())

    def test_bad_width(self):
        with pytest.raises(ValueError, match=r"expected \[..., 32\]"):
            kernels.ablate(torch.zeros(2, 31), orthonormal(32, 4))


class TestGradientNorms:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("with_modes", [True, False])
    def test_against_the_oracle(self, dtype, with_modes):
        lengths = torch.tensor([1, 63, 64, 65, 200])
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        g = randn(int(ends[-1]), 50, dtype=dtype)
        U = orthonormal(50, 6).float() if with_modes else None
        norms, projections = kernels.gradient_norms(g, ends, U)
        want_norms, want = gradient_oracle.gradient_norms(g, ends, U)
        assert kernels.last_path("gradient_norms").name == "cpu"
        assert ((norms / want_norms - 1).abs() <= 2 * EPS32).all()
        if with_modes:
            size = torch.stack([part.double().abs().mean(0) for part in g.split(lengths.tolist())])
            assert ((projections - want).abs() <= 4 * EPS32 * size @ U.double().abs()).all()
            assert projections.shape == (5, 6)
        else:
            assert projections is None

    def test_tiny_gradients_do_not_underflow(self):
        g = torch.full((4, 8), 1e-25)
        norms, _ = kernels.gradient_norms(g, torch.tensor([0, 4]))
        assert norms.item() == pytest.approx(1e-25 * math.sqrt(32), rel=1e-6)

    def test_no_samples(self):
        norms, projections = kernels.gradient_norms(
            torch.zeros(0, 4), torch.tensor([0]), torch.eye(4, dtype=torch.float64)[:, :2]
        )
        assert norms.shape == (0,)
        assert projections.shape == (0, 2)

    @pytest.mark.parametrize(
        ("ends", "message"),
        [
            ([0, 2, 2, 4], "sample 1 has no positions"),
            ([0, 3], "got ends"),
            ([1, 4], "got ends"),
            ([0, 5, 4], "sample 1 has no positions"),
        ],
    )
    def test_bad_ends(self, ends, message):
        with pytest.raises(ValueError, match=message):
            kernels.gradient_norms(torch.zeros(4, 3), torch.tensor(ends))
        with pytest.raises(ValueError, match="expected int64"):
            kernels.gradient_norms(torch.zeros(4, 3), torch.tensor([0, 4], dtype=torch.int32))


class TestMaskedMean:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_padding_may_hold_anything(self, dtype):
        x = (randn(6, 40, 21) + 300).to(dtype)
        mask = torch.rand(6, 40, generator=torch.Generator().manual_seed(5)) < 0.5
        mask[0] = True
        mask[1] = False
        mask[1, 13] = True
        mask[2, :] = False
        mask[2, 5:20] = True
        x[~mask] = math.nan
        got, want = kernels.masked_mean(x, mask), pooling_oracle.masked_mean(x, mask)
        assert got.dtype == torch.float32
        assert ((got - want).abs() <= 4 * EPS32 * want.abs()).all()

    def test_a_row_without_positions_is_named(self):
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[2] = False
        with pytest.raises(ValueError, match="row 2 keeps no position"):
            kernels.masked_mean(torch.zeros(3, 4, 5), mask)

    def test_bad_mask(self):
        with pytest.raises(ValueError, match="expected bool"):
            kernels.masked_mean(torch.zeros(3, 4, 5), torch.ones(3, 4))
