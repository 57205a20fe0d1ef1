"""The GPU kernels' cases: ours beside the obvious code, at one width; bytes and flops are the floor's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import Call, Case

from modegap.kernels import (
    ablate,
    absmax,
    covariance_update,
    cross_update,
    gradient_norms,
    masked_mean,
    projection_energy,
    rayleigh,
    stage,
)
from modegap.kernels.eigh import eigh
from modegap.kernels.ghost_norms import ghost_norms, lora_norms
from modegap.kernels.stage.triton import stage_and_sum

ROWS = 65_536
F32, F64 = torch.float32, torch.float64


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def graded(n: int, d: int) -> torch.Tensor:
    """Centred rows with scales over three decades."""
    return (torch.randn(n, d, device="cuda") * torch.logspace(-2, 1, d, device="cuda")).half()


def basis(d: int, K: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, K, device="cuda", dtype=F64))[0].contiguous()


def covariance_cases(d: int) -> Iterator[Case]:
    inputs = [graded(ROWS, d) for _ in range(2)]
    gram = torch.zeros(d, d, dtype=F64, device="cuda")
    want = sum(part.double().T @ part.double() for part in inputs[0].split(8192))
    scale = (want.diagonal()[:, None] * want.diagonal()).sqrt()

    total = inputs[0].double().sum(0)
    centred = want - torch.outer(total, total) / ROWS

    def error(got: object) -> float:
        if isinstance(got, tuple):  # torch.cov subtracts the mean
            return float(((got[0].double() - centred).tril().abs() / scale).max())
        return float(((got.double() - want).tril().abs() / scale).max())

    def ours(x: torch.Tensor, mode: str = "precise") -> torch.Tensor:
        covariance_update(x, gram, mode=mode)
        return gram

    def tf32(x: torch.Tensor) -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = True
        wide = x.float()
        out = wide.T @ wide
        torch.backends.cuda.matmul.allow_tf32 = False
        return out

    library = "torch.mm(x.T, x, out_dtype=float32)"
    yield Case(
        "covariance",
        d,
        {
            "modegap precise": [lambda x=x: ours(x) for x in inputs],
            library: [lambda x=x: torch.mm(x.T, x, out_dtype=F32) for x in inputs],
            "x.float().T @ x.float() tf32": [lambda x=x: tf32(x) for x in inputs],
            "torch.cov(x.float().T) * n": [
                lambda x=x: (torch.cov(x.float().T, correction=0) * ROWS,) for x in inputs
            ],
        },
        error,
        3e-6,
        bytes=2.0 * ROWS * d + 16.0 * d * d,
        flops=1.0 * ROWS * d * (d + 1),
        repeats=9,
        inaccurate=frozenset({library, "x.float().T @ x.float() tf32", "torch.cov(x.float().T) * n"}),
    )
    wide = inputs[0][:8192].double()
    exact = torch.zeros(d, d, dtype=F64, device="cuda")
    check = wide.T @ wide

    def dsyrk() -> torch.Tensor:
        covariance_update(wide, exact, mode="exact")
        return exact

    yield Case(
        "covariance exact (8192 rows)",
        d,
        {"modegap exact": [dsyrk], "torch fp64 x.T @ x": [lambda: wide.T @ wide]},
        lambda got: relative(got.tril(), check.tril()),
        1e-13,
        flops=8192.0 * d * (d + 1),
        rate="fp64",
        repeats=5,
    )
    other = graded(ROWS, d)
    cross = torch.zeros(d, d, dtype=F64, device="cuda")
    product = sum(
        a.double().T @ b.double() for a, b in zip(inputs[0].split(8192), other.split(8192), strict=True)
    )
    sides = (want.diagonal()[:, None] * other.double().square().sum(0)).sqrt()

    def ours_cross(x: torch.Tensor) -> torch.Tensor:
        cross_update(x, other, cross)
        return cross

    library = "torch.mm(a.T, b, out_dtype=float32)"
    yield Case(
        "cross-covariance",
        d,
        {
            "modegap precise": [lambda x=x: ours_cross(x) for x in inputs],
            library: [lambda x=x: torch.mm(x.T, other, out_dtype=F32) for x in inputs],
        },
        lambda got: float(((got.double() - product).abs() / sides).max()),
        3e-6,
        bytes=4.0 * ROWS * d + 16.0 * d * d,
        flops=2.0 * ROWS * d * d,
        repeats=9,
        inaccurate=frozenset({library}),
    )


def energy_cases(d: int) -> Iterator[Case]:
    inputs = [torch.randn(ROWS, d, device="cuda").half() for _ in range(2)]
    for K in (64, 512, d):
        U = basis(d, K)
        half = U.half()
        out = torch.zeros(K, dtype=F64, device="cuda")
        want = sum((part.double() @ U).square().sum(0) for part in inputs[0].split(8192))

        def ours(x: torch.Tensor, U: torch.Tensor, out: torch.Tensor = out) -> torch.Tensor:
            out.zero_()
            projection_energy(x, U, out)
            return out

        providers: dict[str, list[Call]] = {
            "modegap, fp16 U": [lambda x=x, half=half: ours(x, half) for x in inputs]
        }
        if K <= 512:
            providers["modegap, fp64 U (high and low parts)"] = [lambda x=x, U=U: ours(x, U) for x in inputs]
        providers["(x @ U).float().square().sum(0)"] = [
            lambda x=x, half=half: (x @ half).float().square().sum(0) for x in inputs
        ]
        yield Case(
            f"projection energy K={K}",
            d,
            providers,
            lambda got, want=want: float(((got.double() - want).abs() / want).max()),
            1e-3,
            bytes=2.0 * ROWS * d,
            flops=2.0 * ROWS * d * K,
            repeats=7,
        )
    S = torch.cov(inputs[0][:8192].float().T).double()
    U = basis(d, d)
    narrow, small = U.float(), S.float()
    want = torch.einsum("dk,dk->k", S @ U, U)
    yield Case(
        "Rayleigh quotients K=d",
        d,
        {
            "modegap fp64": [lambda: rayleigh(U, S)],
            "((S @ U) * U).sum(0) fp32": [lambda: ((small @ narrow) * narrow).sum(0)],
        },
        lambda got: relative(got, want),
        1e-4,
        flops=2.0 * d**3,
        rate="fp64",
        repeats=5,
    )


def ablation_cases(d: int) -> Iterator[Case]:
    n = 16_384
    inputs = [torch.randn(n, d, device="cuda").half() for _ in range(3)]
    for K in (11, 16, 53, 64, 128, 256):
        U = basis(d, K)
        half, full = U.half(), U.float()
        wide = inputs[0].double()
        left = float((wide @ U).norm())

        def leak(got: object, U: torch.Tensor = U, left: float = left) -> float:
            return float((got.double() @ U).norm()) / left

        yield Case(
            f"ablation K={K} (error: leakage)",
            d,
            {
                "modegap": [lambda z=z, U=U: ablate(z, U) for z in inputs],
                "torch.addmm half": [
                    lambda z=z, h=half: torch.addmm(z, z @ h, h.T, alpha=-1) for z in inputs
                ],
                "float upcast": [
                    lambda z=z, u=full: (z.float() - (z.float() @ u) @ u.T).half() for z in inputs
                ],
            },
            leak,
            5e-4,
            bytes=4.0 * n * d,
            flops=4.0 * n * d * K,
        )


def segment_cases(d: int) -> Iterator[Case]:
    B, T, K = 64, 600, 64
    inputs = [torch.randn(B * T, d, device="cuda").half() for _ in range(3)]
    ends = torch.arange(B + 1, device="cuda") * T
    U = basis(d, K).float()
    half = U.half()
    first = inputs[0].double().view(B, T, d)
    want = torch.cat([first.flatten(1).norm(dim=1)[:, None], first.mean(1) @ U.double()], dim=1)

    def separate(g: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(g.view(B, -1), dim=1, dtype=F32)
        return torch.cat([norms[:, None], (g @ half).view(B, T, K).mean(1, dtype=F32)], dim=1)

    def joined(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.cat([pair[0][:, None], pair[1]], dim=1)

    from modegap.kernels.gradient_norms.triton import gradient_norms as unchecked
    from modegap.kernels.masked_mean.triton import masked_mean as unchecked_mean

    yield Case(
        "gradient norms, 64 projections",
        d,
        {
            "modegap kernel": [lambda g=g: unchecked(g, ends, U) for g in inputs],
            "modegap checked": [lambda g=g: gradient_norms(g, ends, U) for g in inputs],
            "vector_norm + matmul": [lambda g=g: separate(g) for g in inputs],
            "float().norm() only": [lambda g=g: g.view(B, -1).float().norm(dim=1) for g in inputs],
            "vector_norm only": [
                lambda g=g: torch.linalg.vector_norm(g.view(B, -1), dim=1, dtype=F32) for g in inputs
            ],
        },
        lambda got: relative(
            joined(got) if isinstance(got, tuple) else got, want if _wide(got) else want[:, 0]
        ),
        1e-3,
        bytes=2.0 * B * T * d,
        repeats=25,
    )
    mask = torch.ones(B, T, dtype=torch.bool, device="cuda")
    mask[:, 500:] = torch.rand(B, 100, device="cuda") < 0.5
    weights = mask[..., None].float()
    mean = (first * weights.double()).sum(1) / weights.double().sum(1)
    kept = float(mask.float().mean())
    views = [g.view(B, T, d) for g in inputs]
    yield Case(
        "masked mean",
        d,
        {
            "modegap kernel": [lambda x=x: unchecked_mean(x, mask) for x in views],
            "modegap checked": [lambda x=x: masked_mean(x, mask) for x in views],
            "(x.float() * m).sum(1) / n": [
                lambda x=x: (x.float() * weights).sum(1) / weights.sum(1) for x in views
            ],
        },
        lambda got: relative(got, mean),
        1e-5,
        bytes=2.0 * B * T * d * kept,
        repeats=25,
    )


def _wide(got: object) -> bool:
    return isinstance(got, tuple) or got.dim() == 2


def staging_cases(d: int) -> Iterator[Case]:
    inputs = [(torch.randn(ROWS, d, device="cuda") + 20.0).half() for _ in range(2)]
    shift = torch.full((d,), 20.0, device="cuda")
    narrow = shift.half()
    out = torch.empty_like(inputs[0])
    want = inputs[0].double() - 20.0

    def ours(x: torch.Tensor) -> torch.Tensor:
        stage(x, shift, 1.0, out)
        return out

    def ours_sum(x: torch.Tensor) -> torch.Tensor:
        stage_and_sum(x, shift, 1.0, out)
        return out

    def theirs_sum(x: torch.Tensor) -> torch.Tensor:
        torch.sub(x, narrow, out=out)
        out.sum(0, dtype=F32)
        return out

    yield Case(
        "shift and cast",
        d,
        {
            "modegap": [lambda x=x: ours(x) for x in inputs],
            "modegap with column sums": [lambda x=x: ours_sum(x) for x in inputs],
            "torch.sub": [lambda x=x: torch.sub(x, narrow, out=out) for x in inputs],
            "torch.sub, sum(0)": [lambda x=x: theirs_sum(x) for x in inputs],
        },
        lambda got: relative(got, want),
        3e-4,
        bytes=4.0 * ROWS * d,
        repeats=15,
    )
    peak = inputs[0].abs().amax(0).double()
    yield Case(
        "absmax",
        d,
        {
            "modegap (CuPy)": [lambda x=x: absmax(x) for x in inputs],
            "x.abs().amax(0)": [lambda x=x: x.abs().amax(0) for x in inputs],
        },
        lambda got: relative(got, peak),
        0.0,
        bytes=2.0 * ROWS * d,
        repeats=15,
    )


def ghost_cases(d: int) -> Iterator[Case]:
    for B, T in ((32, 512), (8, 2048)):
        pairs = [
            (torch.randn(B, T, d, device="cuda").half(), (torch.randn(B, T, d, device="cuda") * 0.01).half())
            for _ in range(2)
        ]
        a, g = pairs[0]
        want = torch.stack([(a[b].double().T @ g[b].double()).norm() for b in range(B)])

        def grams(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            left = torch.bmm(a, a.mT, out_dtype=F32)
            return (left * torch.bmm(g, g.mT, out_dtype=F32)).sum((1, 2)).sqrt()

        def entries(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return torch.linalg.vector_norm(torch.bmm(a.mT, g).flatten(1), dim=1, dtype=F32)

        yield Case(
            f"ghost norms T={T}",
            d,
            {
                "modegap": [lambda a=a, g=g: ghost_norms(a, g) for a, g in pairs],
                "per-sample gradients (bmm)": [lambda a=a, g=g: entries(a, g) for a, g in pairs],
                "two Gram matrices (bmm)": [lambda a=a, g=g: grams(a, g) for a, g in pairs],
            },
            lambda got, want=want: relative(got, want),
            1e-3,
            bytes=4.0 * B * T * d,
            flops=2.0 * B * T * (T + 1) * d,
            repeats=9,
        )
    B, T, r = 32, 512, 16
    x, g = torch.randn(B, T, d, device="cuda").half(), (torch.randn(B, T, d, device="cuda") * 0.01).half()
    down, up = (torch.randn(r, d, device="cuda") / 64).half(), (torch.randn(d, r, device="cuda") / 64).half()
    want = torch.stack([((g[b].double() @ up.double()).T @ x[b].double()).norm() for b in range(B)])

    def formed() -> torch.Tensor:
        of_down = torch.linalg.vector_norm(torch.bmm((g @ up).mT, x).flatten(1), dim=1, dtype=F32)
        torch.linalg.vector_norm(torch.bmm(g.mT, x @ down.T).flatten(1), dim=1, dtype=F32)
        return of_down

    yield Case(
        "LoRA norms r=16, T=512",
        d,
        {"modegap": [lambda: lora_norms(x, g, down, up)], "per-sample gradients (bmm)": [formed]},
        lambda got: relative(got[0] if isinstance(got, tuple) else got, want),
        2e-3,
        bytes=4.0 * 2 * B * T * d,
    )


def eigh_cases(d: int) -> Iterator[Case]:
    x = torch.randn(d, d, dtype=F64, device="cuda")
    S = x @ x.T / d
    want = torch.linalg.eigvalsh(S)
    yield Case(
        "eigh",
        d,
        {"modegap (CuPy)": [lambda: eigh(S)], "torch.linalg.eigh": [lambda: torch.linalg.eigh(S)]},
        lambda got: relative(got[0], want),
        1e-10,
        repeats=3,
    )


FAMILIES = {
    "covariance": covariance_cases,
    "energy": energy_cases,
    "ablation": ablation_cases,
    "segments": segment_cases,
    "staging": staging_cases,
    "ghost": ghost_cases,
    "eigh": eigh_cases,
}
