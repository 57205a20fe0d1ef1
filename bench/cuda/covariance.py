"""GPU covariance and cross-covariance: ours beside the obvious code, at one width."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench import peers
from bench.harness import Case
from modegap.kernels import covariance_update, cross_update

from .data import F32, F64, ROWS, graded, relative


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
    others, missing = peers.gpu_covariance(inputs)
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
            **others,
        },
        error,
        3e-6,
        bytes=2.0 * ROWS * d + 16.0 * d * d,
        flops=1.0 * ROWS * d * (d + 1),
        repeats=9,
        inaccurate=frozenset(
            {library, "x.float().T @ x.float() tf32", "torch.cov(x.float().T) * n", *others}
        ),
        missing=missing,
    )
    fast = torch.zeros_like(gram)

    def ours_fast(x: torch.Tensor) -> torch.Tensor:
        covariance_update(x, fast, mode="fast")
        return fast

    obvious = "torch.cov(x.float().T) * n"
    yield Case(
        "covariance fast",
        d,
        {
            "modegap fast": [lambda x=x: ours_fast(x) for x in inputs],
            library: [lambda x=x: torch.mm(x.T, x, out_dtype=F32) for x in inputs],
            obvious: [lambda x=x: (torch.cov(x.float().T, correction=0) * ROWS,) for x in inputs],
        },
        error,
        1e-3,  # a kernel that chains: the one for Hopper does not
        bytes=2.0 * ROWS * d + 16.0 * d * d,
        flops=1.0 * ROWS * d * (d + 1),
        repeats=9,
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
        bytes=8.0 * 8192 * d + 16.0 * d * d,
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
