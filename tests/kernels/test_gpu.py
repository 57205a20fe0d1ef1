"""The accuracy contract on a GPU: against fp64 on the same stored rows, at the widths of real models."""

from __future__ import annotations

import pytest
import torch

from modegap.kernels import (
    ablate,
    absmax,
    covariance_update,
    cross_update,
    gradient_norms,
    last_path,
    masked_mean,
    mirror_lower,
    projection_energy,
    rotary,
    shift_of,
    stage,
    swiglu,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

RATIOS = (0.0, 1.0, 8.0, 64.0, 1024.0)


@pytest.fixture(autouse=True)
def _fresh_memory():
    yield
    torch.cuda.empty_cache()


def graded_rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Channels with mean/std in RATIOS and scales over three decades, in a shuffled order."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    scale = torch.logspace(-2, 1, d, device="cuda")[torch.randperm(d, generator=generator, device="cuda")]
    ratio = torch.tensor(RATIOS, device="cuda").repeat(d // len(RATIOS) + 1)[:d]
    scale = torch.where(ratio > 100.0, scale.clamp(max=1.0), scale)  # 1024 std must fit fp16
    x = torch.empty(n, d, dtype=dtype, device="cuda")
    for lo in range(0, n, 16_384):
        part = torch.randn(min(16_384, n - lo), d, generator=generator, device="cuda")
        x[lo : lo + len(part)] = (part + ratio) * scale
    return x


def exact_gram(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    out = torch.zeros(x.shape[1], (x if y is None else y).shape[1], dtype=torch.float64, device="cuda")
    for lo in range(0, len(x), 8192):
        a = x[lo : lo + 8192].double()
        out += a.T @ (a if y is None else y[lo : lo + 8192].double())
    return out


def covariance(x: torch.Tensor, mode: str = "precise", block: int | None = None) -> torch.Tensor:
    shift = shift_of(x[:4096].float())
    rows = torch.empty_like(x)
    stage(x, shift, 1.0, rows)
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device="cuda")
    for lo in range(0, len(x), block or len(x)):
        covariance_update(rows[lo : lo + (block or len(x))], gram, mode=mode)
    mirror_lower(gram)
    offset = rows.double().mean(0)
    return gram / len(x) - torch.outer(offset, offset)


def exact_covariance(x: torch.Tensor) -> torch.Tensor:
    mean = torch.stack([part.double().sum(0) for part in x.split(8192)]).sum(0) / len(x)
    out = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device="cuda")
    for part in x.split(8192):
        centred = part.double() - mean
        out += centred.T @ centred
    return out / len(x)


def worst(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """(largest |dS_ij| / sqrt(S_ii S_jj), signed mean relative error of the diagonal)."""
    diagonal = want.diagonal()
    scale = (diagonal[:, None] * diagonal).sqrt()
    relative = (got.diagonal() - diagonal) / diagonal
    return float(((got - want).abs() / scale).max()), float(relative.mean())


@pytest.mark.parametrize(
    ("n", "d"), [(65_573, 1152), (32_768, 1153), (65_536, 3584), (65_573, 4096), (65_536, 8192)]
)
def test_contract_of_the_covariance(n: int, d: int) -> None:
    x = graded_rows(n, d)
    got, want = covariance(x), exact_covariance(x)
    path = last_path("covariance_update")
    assert path.name == "triton"
    if torch.cuda.get_device_capability() == (9, 0):
        assert ("Hopper" in path.why) == (d % 8 == 0), path.why
    error, bias = worst(got, want)
    assert error <= 3e-6
    assert abs(bias) <= 1e-6
    assert torch.equal(got, got.T)
    if d <= 4096:
        values, oracle = torch.linalg.eigvalsh(got), torch.linalg.eigvalsh(want)
        assert float(((values - oracle) / oracle).abs().max()) <= 5e-6


def test_covariance_against_the_library() -> None:
    """A hundredth of the bias of cuBLAS on the same shifted rows."""
    x = graded_rows(65_536, 2048)
    rows = torch.empty_like(x)
    stage(x, shift_of(x[:4096].float()), 1.0, rows)
    want = exact_gram(rows)
    gram = torch.zeros_like(want)
    covariance_update(rows, gram)
    library = torch.mm(rows.T, rows, out_dtype=torch.float32).double()
    diagonal = want.diagonal()
    theirs = float(((library.diagonal() - diagonal) / diagonal).mean())
    ours = float(((gram.diagonal() - diagonal) / diagonal).mean())
    assert theirs < -1e-5, "the bias that promotion is for is gone: simplify the kernel"
    assert abs(ours) < abs(theirs) / 100


@pytest.mark.parametrize("d", [5120, 640])
def test_covariance_of_bf16_rows(d: int) -> None:
    x = graded_rows(8229, d, dtype=torch.bfloat16)
    gram = torch.zeros(d, d, dtype=torch.float64, device="cuda")
    covariance_update(x, gram)
    error, _ = worst(gram.tril() + gram.tril(-1).T, exact_gram(x))
    assert error <= 3e-6


def test_more_rows_than_int32_offsets_allow() -> None:
    n, d = 600_011, 4096
    x = graded_rows(n, d)
    x[-1] *= 50.0
    gram = torch.zeros(d, d, dtype=torch.float64, device="cuda")
    covariance_update(x, gram)
    want = exact_gram(x)
    error, bias = worst(gram.tril() + gram.tril(-1).T, want)
    assert error <= 3e-6
    assert abs(bias) <= 1e-6
    generator = torch.Generator(device="cuda").manual_seed(8)
    U = torch.randn(d, 8, device="cuda", dtype=torch.float64, generator=generator)
    energy = torch.zeros(8, dtype=torch.float64, device="cuda")
    projection_energy(x, U, energy)
    oracle = torch.einsum("dk,de,ek->k", U, want, U)
    # These rows are not centred: where their mean cancels along a direction, its energy is small beside the rest.
    assert float((energy - oracle).abs().max()) < 1e-4 * float(oracle.max())
    peak = absmax(x)
    assert torch.equal(peak, x.abs().amax(0).float())
    out = ablate(x, torch.linalg.qr(U)[0])
    tail = x[-3:].double()
    basis = torch.linalg.qr(U)[0]
    assert float((out[-3:].double() - (tail - tail @ basis @ basis.T)).abs().max()) <= 2**-11 * float(
        tail.abs().max()
    )
    norms, _ = gradient_norms(x, torch.tensor([0, n - 5, n], device="cuda"))
    assert abs(float(norms[1] / x[-5:].double().norm()) - 1.0) < 1e-6
    assert (
        abs(float(norms[0] / want.diagonal().sum().sub(x[-5:].double().square().sum()).sqrt()) - 1.0) < 1e-5
    )


def test_units_cut_along_very_many_rows() -> None:
    """Ranges of rows with a slot of their own hold one fp32 sum each: none may be longer than the others."""
    x = graded_rows(300_007, 640)
    gram = torch.zeros(640, 640, dtype=torch.float64, device="cuda")
    covariance_update(x, gram)
    error, bias = worst(gram.tril() + gram.tril(-1).T, exact_gram(x))
    assert error <= 3e-6
    assert abs(bias) <= 1e-6
    y = graded_rows(300_007, 200, 3)
    out = torch.zeros(640, 200, dtype=torch.float64, device="cuda")
    cross_update(x, y, out)
    want = exact_gram(x, y)
    scale = (x.double().square().sum(0)[:, None] * y.double().square().sum(0)).sqrt()
    assert float(((out - want).abs() / scale).max()) <= 3e-6


def test_covariance_writes_the_triangle_only_and_repeats_exactly() -> None:
    x = graded_rows(5000, 900)
    grams = []
    for _ in range(2):
        gram = torch.full((900, 900), 3.0, dtype=torch.float64, device="cuda")
        covariance_update(x, gram)
        assert bool((gram.triu(1) == torch.full_like(gram, 3.0).triu(1)).all())
        grams.append(gram)
    assert torch.equal(*grams)
    covariance_update(x[:0], gram)
    assert torch.equal(*grams)


def test_covariance_does_not_depend_on_the_chunks() -> None:
    x = graded_rows(40_000, 768)
    whole, parts = covariance(x), covariance(x, block=1711)
    assert worst(parts, whole)[0] <= 2e-6


def test_large_values_do_not_overflow() -> None:
    x = torch.full((4096, 256), 60_000.0, dtype=torch.float16, device="cuda")
    gram = torch.zeros(256, 256, dtype=torch.float64, device="cuda")
    covariance_update(x, gram)
    assert torch.allclose(gram.tril(), torch.full_like(gram, 4096 * 60_000.0**2).tril(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_mode(dtype: torch.dtype) -> None:
    pytest.importorskip("cupy")
    x = graded_rows(6001, 1000).to(dtype)
    gram = torch.full((1000, 1000), 5.0, dtype=torch.float64, device="cuda")
    covariance_update(x, gram, mode="exact" if dtype is torch.float64 else "precise")
    assert last_path("covariance_update").name == "cupy"
    want = exact_gram(x) + 5.0
    assert float(((gram - want).tril().abs() / want.diagonal().max()).max()) < 1e-13
    assert bool((gram.triu(1) == torch.full_like(gram, 5.0).triu(1)).all())


@pytest.mark.parametrize(("n", "p", "q"), [(65_573, 4096, 1152), (5000, 513, 4096), (70_000, 256, 77)])
def test_contract_of_the_cross_covariance(n: int, p: int, q: int) -> None:
    a, b = graded_rows(n, p, 1), graded_rows(n, q, 2)
    shifted = []
    for x in (a, b):
        rows = torch.empty_like(x)
        stage(x, shift_of(x[:4096].float()), 1.0, rows)
        shifted.append(rows)
    out = torch.full((p, q), 1.0, dtype=torch.float64, device="cuda")
    cross_update(*shifted, out)
    assert last_path("cross_update").name == "triton"
    want = exact_gram(*shifted) + 1.0
    scale = (shifted[0].double().square().sum(0)[:, None] * shifted[1].double().square().sum(0)).sqrt()
    assert float(((out - want).abs() / scale).max()) <= 3e-6


def assert_ablated(got: torch.Tensor, z: torch.Tensor, U: torch.Tensor) -> None:
    """`got` is the exact result rounded once, and leaves in the subspace what that rounding leaves."""
    wide, basis = z.double(), U.double()
    want = wide - wide @ basis @ basis.T
    rounding = (want.to(z.dtype).double() - want).norm()
    slack = 2e-6 * float(wide.norm())  # of sums in fp32
    assert float((got.double() - want).norm()) <= 1.02 * float(rounding) + slack
    inside = float((got.double() @ basis).norm())
    allowed = float((want.to(z.dtype).double() @ basis).norm())
    assert inside <= 1.05 * allowed + slack


@pytest.mark.parametrize("K", [1, 11, 16, 30, 53, 64, 128, 200, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_leakage_of_the_ablation(K: int, dtype: torch.dtype) -> None:
    d = 4096
    U = torch.linalg.qr(torch.randn(d, K, device="cuda", dtype=torch.float64))[0]
    z = torch.randn(3, 677, d, device="cuda")
    z[..., ::512] *= 60.0
    z = z.to(dtype)
    got = ablate(z, U)
    path = last_path("ablate")
    if K <= 128 or dtype is not torch.float32:
        assert path.name == "triton"
    if torch.cuda.get_device_capability() == (9, 0) and dtype is not torch.float32:
        assert ("Hopper" in path.why) == (K <= 256)
    assert_ablated(got, z, U)


@pytest.mark.parametrize(
    ("n", "d"), [(1, 4096), (65, 8), (40_001, 136), (1000, 1152), (9000, 5120), (500, 4100)]
)
@pytest.mark.parametrize("K", [3, 20, 64, 100, 136])
def test_ablation_of_any_number_of_rows_and_width(n: int, d: int, K: int) -> None:
    """Several tiles a program, fewer columns than a chunk, rows that TMA cannot address (4100)."""
    U = torch.linalg.qr(torch.randn(d, min(K, d), device="cuda", dtype=torch.float64))[0]
    z = torch.randn(n, d, device="cuda").half()
    assert_ablated(ablate(z, U), z, U)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ablation_with_a_basis_that_the_states_dtype_holds(dtype: torch.dtype) -> None:
    """Hadamard columns: orthonormal in any dtype, so there is no low part to multiply."""
    d, K = 1024, 64
    H = torch.ones(1, 1, device="cuda", dtype=torch.float64)
    while len(H) < d:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    U = (H[:, :K] / 32).to(dtype)
    z = (torch.randn(3000, d, device="cuda") * 30).to(dtype)
    assert_ablated(ablate(z, U), z, U)


def test_ablation_repeats_exactly() -> None:
    U = torch.linalg.qr(torch.randn(4096, 64, device="cuda", dtype=torch.float64))[0]
    z = torch.randn(20_000, 4096, device="cuda").half()
    first = ablate(z, U)
    assert all(torch.equal(first, ablate(z, U)) for _ in range(5))


def test_ablation_of_strided_states_and_its_gradient() -> None:
    U = torch.linalg.qr(torch.randn(64, 5, device="cuda", dtype=torch.float64))[0]
    z = torch.randn(9, 128, device="cuda", dtype=torch.float16)[:, ::2].requires_grad_()
    out = ablate(z, U)
    assert last_path("ablate").name == "triton"
    out.square().sum().backward()
    wide = z.detach().double()
    want = 2 * (wide - wide @ U @ U.T)
    assert torch.allclose(z.grad.double(), want, atol=2e-2)


@pytest.mark.parametrize("K", [3, 64, 100, 512])
@pytest.mark.parametrize("exact", [True, False])
def test_projection_energy(K: int, exact: bool) -> None:
    stored = graded_rows(33_001, 4096)
    x = torch.empty_like(stored)
    stage(stored, shift_of(stored[:4096].float()), 1.0, x)
    U = torch.randn(4096, K, device="cuda", dtype=torch.float64)
    U = U.half() if exact else U
    out = torch.ones(K, dtype=torch.float64, device="cuda")
    projection_energy(x, U, out)
    assert last_path("projection_energy").name == "triton"
    want = sum((part.double() @ U.double()).square().sum(0) for part in x.split(8192)) + 1.0
    assert float(((out - want) / want).abs().max()) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradient_norms_of_ragged_samples(dtype: torch.dtype) -> None:
    lengths = torch.tensor([1, 600, 37, 2048, 5, 700], device="cuda")
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    g = (torch.randn(int(ends[-1]), 3584, device="cuda") * 400.0).to(dtype)
    U = torch.randn(3584, 65, device="cuda", dtype=torch.float64)
    norms, projections = gradient_norms(g, ends, U)
    assert last_path("gradient_norms").name == "triton"
    for b in range(len(lengths)):
        part = g[ends[b] : ends[b + 1]].double()
        assert abs(float(norms[b] / part.norm()) - 1.0) < 1e-6
        mean = part.mean(0)
        assert float((projections[b] - mean @ U).abs().max()) < 1e-5 * float(
            mean.norm() * U.norm(dim=0).max()
        )


def test_masked_mean_reads_no_padding() -> None:
    x = torch.randn(9, 611, 1152, device="cuda", dtype=torch.float16)
    mask = torch.rand(9, 611, device="cuda") < 0.5
    mask[:, 3] = True
    x[~mask] = float("nan")
    got = masked_mean(x, mask)
    assert last_path("masked_mean").name == "triton"
    want = torch.stack([x[b, mask[b]].double().mean(0) for b in range(9)])
    assert torch.allclose(got.double(), want, atol=1e-6, rtol=1e-6)
    mask[4] = False
    with pytest.raises(ValueError, match="row 4"):
        masked_mean(x, mask)


def test_stage_is_exact_near_the_shift() -> None:
    from modegap.kernels.stage.triton import stage_and_sum

    x = graded_rows(20_011, 1152)
    shift = shift_of(x[:4096].float())
    out = torch.full_like(x, float("nan"))
    sums, inexact = stage_and_sum(x, shift, 1.0, out)
    exact = x.double() - shift.double()
    assert torch.equal(out, exact.half())
    assert int(inexact) == int((out.double() != exact).sum())
    assert int(inexact) < x.numel() // 100
    assert torch.allclose(sums, out.double().sum(0), rtol=1e-6, atol=1e-2)
    for dtype in (torch.float32, torch.float64):
        wide = torch.empty(x.shape, dtype=dtype, device="cuda")
        stage(x, shift, 4.0, wide)
        assert last_path("stage").name == "triton"
        assert torch.equal(wide, (x.double() * 4.0 - shift.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_absmax_sees_nan_and_infinity(dtype: torch.dtype) -> None:
    pytest.importorskip("cupy")
    x = (torch.randn(70_001, 1160, device="cuda") * 10).to(dtype)
    x[69_999, 7] = float("-inf")
    x[0, 1159] = float("nan")
    x[:, 5] = -0.0
    got = absmax(x)
    assert last_path("absmax").name == "cupy"
    want = x.abs().amax(0).float()
    assert torch.equal(got.nan_to_num(nan=-1.0), want.nan_to_num(nan=-1.0))
    assert bool(got[1159].isnan())
    assert absmax(x[:, :1157]).shape == (1157,)


def test_eigh_reads_the_lower_triangle() -> None:
    pytest.importorskip("cupy")
    from modegap.kernels.eigh import eigh

    x = torch.randn(700, 300, device="cuda", dtype=torch.float64)
    S = x.T @ x
    values, vectors = eigh(S.tril() + torch.full_like(S, 9.0).triu(1))
    assert last_path("eigh").name == "cupy"
    assert float((vectors * values @ vectors.T - S).abs().max()) < 1e-10 * float(values.max())
    assert bool((values.diff() >= 0).all())


@pytest.mark.parametrize(("T", "d", "p"), [(512, 1024, 768), (700, 16, 1000), (3, 4096, 4096)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_ghost_norms(T: int, d: int, p: int, dtype: torch.dtype) -> None:
    from modegap.kernels.ghost_norms import ghost_norms, lora_norms

    a = torch.randn(3, T, d, device="cuda").to(dtype)
    g = (torch.randn(3, T, p, device="cuda") * 0.1).to(dtype)
    want = torch.stack([(a[b].double().T @ g[b].double()).norm() for b in range(3)])
    assert torch.allclose(ghost_norms(a, g), want, rtol=1e-4)
    assert last_path("ghost_norms").name == "triton"
    down, up = torch.randn(8, d, device="cuda") / 32, torch.randn(p, 8, device="cuda") / 32
    of_down, of_up = lora_norms(a, g, down, up, 2.0)
    wide = [(2.0 * ((g[b].double() @ up.double()).T @ a[b].double()).norm()).item() for b in range(3)]
    assert torch.allclose(of_down, torch.tensor(wide, device="cuda", dtype=torch.float64), rtol=2e-3)
    wide = [(2.0 * (g[b].double().T @ (a[b].double() @ down.double().T)).norm()).item() for b in range(3)]
    assert torch.allclose(of_up, torch.tensor(wide, device="cuda", dtype=torch.float64), rtol=2e-3)


def added(call) -> int:
    """Bytes that a call's peak adds, on the second call: what is kept between calls is there already."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_nothing_is_allocated_beyond_results_and_stated_workspace() -> None:
    from modegap.kernels import Workspace, stage_and_sum
    from modegap.kernels.ghost_norms import ghost_norms

    n, d, K, B, T = 16_384, 4096, 64, 32, 512
    slack = 64 * 512  # the allocator rounds every tensor up to 512 bytes
    x = graded_rows(n, d)
    U = torch.linalg.qr(torch.randn(d, K, device="cuda", dtype=torch.float64))[0]
    gram = torch.zeros(d, d, dtype=torch.float64, device="cuda")
    workspace = Workspace()
    assert added(lambda: covariance_update(x, gram, workspace=workspace)) <= slack
    assert workspace.nbytes <= 132 * 128 * 1024  # one tile a multiprocessor; d = 4096 fills whole waves
    assert added(lambda: cross_update(x, x, gram, workspace=workspace)) <= slack
    energy = torch.zeros(K, dtype=torch.float64, device="cuda")
    assert added(lambda: projection_energy(x, U, energy)) <= 4 * n // 64 * K + slack
    assert added(lambda: ablate(x, U)) <= x.nbytes + slack
    ends = torch.arange(B + 1, device="cuda") * T
    narrow = U.float().contiguous()
    parts = B * d // 64
    assert added(lambda: gradient_norms(x, ends, narrow)) <= 4 * parts * (1 + K) + 8 * B * (1 + K) + slack
    mask = torch.ones(B, T, dtype=torch.bool, device="cuda")
    assert added(lambda: masked_mean(x.view(B, T, d), mask)) <= 4 * B * d + slack
    a = x.view(B, T, d)
    assert added(lambda: ghost_norms(a, a)) <= slack
    out, shift = torch.empty_like(x), torch.zeros(d, device="cuda")
    assert added(lambda: stage(x, shift, 1.0, out)) <= slack
    assert added(lambda: stage_and_sum(x, shift, 1.0, out)) <= 12 * d * (n // 512) + 8 * d + slack
    assert added(lambda: absmax(x)) <= 3 * 4 * d + slack


def test_checksums_are_those_of_the_oracle() -> None:
    from modegap.kernels import crc32c
    from modegap.kernels.crc32c.reference import crc32c as oracle

    x = torch.randint(-(2**31), 2**31, (9, 4 << 20), device="cuda").to(torch.int32)
    for blocks in (x, x[:1], x[::3, :1_000_003], x[:, :1], x[:2, 1:130], torch.zeros_like(x[:2])):
        assert crc32c(blocks).cpu().tolist() == oracle(blocks).cpu().tolist()
        assert last_path("crc32c").name == "triton"
    clean = crc32c(x[:1]).cpu().tolist()
    for word in (0, 1, 127, 128, 8191, 8192, (4 << 20) - 8193, (4 << 20) - 1):
        x[0, word] ^= 1 << (word % 31)
        dirty = crc32c(x[:1]).cpu().tolist()
        assert dirty != clean
        assert dirty == oracle(x[:1]).cpu().tolist()
        x[0, word] ^= 1 << (word % 31)
    odd = x[:, :5].half()
    assert crc32c(odd[:, :3]).cpu().tolist() == oracle(odd[:, :3]).cpu().tolist()
    assert last_path("crc32c").name == "reference"


def test_checks_of_values_wait_for_the_gpu_once() -> None:
    mask = torch.ones(4, 100, dtype=torch.bool, device="cuda")
    x = torch.randn(4, 100, 64, device="cuda").half()
    ends = torch.arange(5, device="cuda") * 100
    masked_mean(x, mask)
    gradient_norms(x.view(400, 64), ends)
    torch.cuda.set_sync_debug_mode("error")
    try:
        masked_mean(x, mask)
        gradient_norms(x.view(400, 64), ends)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    mask[2] = False
    with pytest.raises(ValueError, match="row 2"):
        masked_mean(x, mask)
    with pytest.raises(ValueError, match="expected \\(0, 399\\)"):
        gradient_norms(x.view(400, 64)[:399], ends)


def roundings(got: torch.Tensor, want: torch.Tensor, terms: torch.Tensor) -> float:
    """Largest distance from the fp64 value: in roundings of it, less fp32's share of the terms."""
    half = torch.finfo(got.dtype).eps / 2
    gap = (got.double() - want).abs() - 1e-6 * terms
    return float((gap / (half * want.abs() + torch.finfo(got.dtype).smallest_normal)).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 7), (5, 604, 11_008), (2, 33, 1001)])
def test_swiglu_rounds_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from modegap.kernels.swiglu import reference

    made = [torch.randn(*shape, device="cuda").to(dtype) for _ in range(3)]
    gate, up, grad = made
    ours = [x.clone().requires_grad_() for x in (gate, up)]
    got = swiglu(*ours)
    assert last_path("swiglu").name == "triton"
    got.backward(grad)
    wide = [x.double().requires_grad_() for x in (gate, up)]
    want = reference.swiglu(*wide)
    want.backward(grad.double())
    assert roundings(got, want, want.abs()) <= 1.001
    room = (grad.double() * up.double()).abs() * (1 + gate.double().abs())
    assert roundings(ours[0].grad, wide[0].grad, room) <= 1.001
    assert roundings(ours[1].grad, wide[1].grad, wide[1].grad.abs()) <= 1.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("H", "K", "D"), [(32, 32, 128), (32, 8, 128), (40, 5, 80), (1, 1, 6), (130, 2, 64)])
def test_rotary_rounds_once(H: int, K: int, D: int, dtype: torch.dtype) -> None:
    from modegap.kernels.rotary import reference

    B, T = 3, 61
    q, k = (torch.randn(B, T, n, D, device="cuda").to(dtype).transpose(1, 2) for n in (H, K))
    angle = torch.randn(1, T, D // 2, device="cuda").repeat(1, 1, 2) * 50
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    ours, wide = ([x.detach().to(kind).requires_grad_() for x in (q, k)] for kind in (dtype, torch.float64))
    got, want = rotary(*ours, cos, sin), reference.rotary(*wide, cos, sin)
    assert last_path("rotary").name == "triton"
    grads = [torch.randn_like(x) for x in got]
    torch.autograd.backward(got, grads)
    torch.autograd.backward(want, [g.double() for g in grads])
    for x, y, z, mine, theirs in zip(got, want, (q, k), ours, wide, strict=True):
        terms = z.double().abs().amax() * 2
        assert roundings(x, y, terms) <= 1.001
        assert roundings(mine.grad, theirs.grad, terms * 3) <= 1.001
        if H > 1:
            assert x.stride() == z.stride()
            assert mine.grad.stride() == z.stride()


def test_swiglu_beyond_32_bits() -> None:
    """More values than int32 counts: the last rows are right."""
    n, d = 201_000, 11_008
    gate = torch.randn(1, d, device="cuda").half().expand(n, d).contiguous()
    gate[-1] += 1
    got = swiglu(gate, gate)
    assert torch.equal(got[-1], swiglu(gate[-1], gate[-1]))
    assert torch.equal(got[-2], got[0])
