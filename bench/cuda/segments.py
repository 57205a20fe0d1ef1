"""GPU passes bound by memory: gradient norms, masked mean, staging, absmax, at one width."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Case
from modegap.kernels import absmax, gradient_norms, masked_mean, stage, stage_and_sum

from .data import F32, ROWS, basis, relative


def _wide(got: object) -> bool:
    return isinstance(got, tuple) or got.dim() == 2


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

    yield Case(
        "gradient norms, 64 projections",
        d,
        {
            "modegap": [lambda g=g: gradient_norms(g, ends, U) for g in inputs],
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
            "modegap": [lambda x=x: masked_mean(x, mask) for x in views],
            "(x.float() * m).sum(1) / n": [
                lambda x=x: (x.float() * weights).sum(1) / weights.sum(1) for x in views
            ],
        },
        lambda got: relative(got, mean),
        1e-5,
        bytes=2.0 * B * T * d * kept,
        repeats=25,
    )


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
