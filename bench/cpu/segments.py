"""Host passes over sequences: gradient norms, masked mean, shift and cast, ghost norms."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench import peers
from bench.harness import Case
from modegap.kernels import absmax, ghost_norms, gradient_norms, lora_norms, masked_mean, stage

from .data import F32, basis, normal, relative, rows_of


def segment_cases(d: int) -> Iterator[Case]:
    """Gradient norms with 64 projections, and the masked mean, of 16 samples of 256 positions."""
    B, T, K = 16, 256, 64
    inputs = [normal(B * T, d, seed=seed) for seed in range(2)]
    ends = torch.arange(B + 1) * T
    U = basis(d, K).float()
    first = inputs[0].double().view(B, T, d)
    norms = first.flatten(1).norm(dim=1)
    want = torch.cat([norms[:, None], first.mean(1) @ U.double()], dim=1)

    def ours(g: torch.Tensor) -> torch.Tensor:
        found, projected = gradient_norms(g, ends, U)
        return torch.cat([found[:, None], projected], dim=1)

    def separate(g: torch.Tensor) -> torch.Tensor:
        wide = g.float().view(B, T, d)
        return torch.cat([wide.flatten(1).norm(dim=1)[:, None], wide.mean(1) @ U], dim=1)

    def loop(g: torch.Tensor) -> torch.Tensor:
        """One sample after the other, as the paper's script has them; it takes no norms."""
        parts = [part.float() for part in g.split(T)]
        return torch.stack([torch.cat([part.norm()[None], part.mean(0) @ U]) for part in parts])

    yield Case(
        "gradient norms, 64 projections",
        d,
        {
            "modegap": [lambda g=g: ours(g) for g in inputs],
            "float().norm(), mean @ U": [lambda g=g: separate(g) for g in inputs],
            "paper: loop over samples": [lambda g=g: loop(g) for g in inputs],
        },
        lambda got: relative(got, want),
        1e-5,
        bytes=2.0 * B * T * d,
    )
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, T * 5 // 6 :] = torch.rand(B, T - T * 5 // 6, generator=torch.Generator().manual_seed(5)) < 0.5
    weights = mask[..., None].float()
    mean = (first * weights.double()).sum(1) / weights.double().sum(1)
    views = [g.view(B, T, d) for g in inputs]
    yield Case(
        "masked mean",
        d,
        {
            "modegap": [lambda x=x: masked_mean(x, mask) for x in views],
            "(x.float() * m).sum(1) / n": [
                lambda x=x: (x.float() * weights).sum(1) / weights.sum(1) for x in views
            ],
            "loop: x[b, mask].float().mean(0)": [
                lambda x=x: torch.stack(
                    [row[keep].float().mean(0) for row, keep in zip(x, mask, strict=True)]
                )
                for x in views
            ],
        },
        lambda got: relative(got, mean),
        1e-5,
        bytes=2.0 * d * float(mask.sum()),
    )


def staging_cases(d: int) -> Iterator[Case]:
    """fp16 rows to shifted fp32 rows, as the covariance reads them, and their largest magnitudes."""
    n = rows_of(d)
    inputs = [normal(n, d, seed=seed) + 20.0 for seed in range(2)]
    shift = torch.full((d,), 20.0)
    out = torch.empty(n, d)
    want = inputs[0].double() - 20.0

    def ours(x: torch.Tensor) -> torch.Tensor:
        stage(x, shift, 1.0, out)
        return out

    yield Case(
        "shift and cast",
        d,
        {
            "modegap": [lambda x=x: ours(x) for x in inputs],
            "torch.sub(x.float(), shift, out=out)": [
                lambda x=x: torch.sub(x.float(), shift, out=out) for x in inputs
            ],
        },
        lambda got: relative(got, want),
        1e-7,
        bytes=6.0 * n * d,
    )
    peak = inputs[0].double().abs().amax(0)
    yield Case(
        "absmax",
        d,
        {
            "modegap": [lambda x=x: absmax(x) for x in inputs],
            "x.abs().amax(0)": [lambda x=x: x.abs().amax(0) for x in inputs],
            "np.abs(x).max(0)": [lambda x=x: torch.from_numpy(np.abs(x.numpy()).max(0)) for x in inputs],
        },
        lambda got: relative(got, peak),
        0.0,
        bytes=2.0 * n * d,
    )


def ghost_cases(d: int) -> Iterator[Case]:
    """Per-sample norms of the gradients of a d x d weight and of LoRA's factors, 4 samples of 512 positions."""
    B, T = 4, 512
    pairs = [
        (normal(B, T, d, seed=seed).float(), normal(B, T, d, seed=seed + 9).float() * 0.01)
        for seed in range(2)
    ]
    a, g = pairs[0]
    want = torch.stack([(a[b].double().T @ g[b].double()).norm() for b in range(B)])
    others, missing = peers.ghost(pairs)
    yield Case(
        "ghost norms T=512",
        d,
        {
            "modegap": [lambda a=a, g=g: ghost_norms(a, g) for a, g in pairs],
            "per-sample gradients (bmm)": [
                lambda a=a, g=g: torch.linalg.vector_norm(torch.bmm(a.mT, g).flatten(1), dim=1, dtype=F32)
                for a, g in pairs
            ],
            **others,
        },
        lambda got: relative(got.detach(), want),
        1e-4,
        bytes=8.0 * B * T * d,
        flops=2.0 * B * T * (T + 1) * d,
        rate="fp32",
        repeats=7,
        inaccurate=frozenset({"per-sample gradients (bmm)", "torch.func vmap(grad)"}),
        missing=missing,
    )
    r = 16
    down, up = (normal(*shape, seed=3).float() / d**0.5 for shape in ((r, d), (d, r)))
    of_down = torch.stack([((g[b] @ up).double().T @ a[b].double()).norm() for b in range(B)])
    of_up = torch.stack([(g[b].double().T @ (a[b] @ down.T).double()).norm() for b in range(B)])

    def formed(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        first, second = torch.bmm((g @ up).mT, x), torch.bmm(g.mT, x @ down.T)
        return torch.cat([first.flatten(1).norm(dim=1), second.flatten(1).norm(dim=1)])

    yield Case(
        "LoRA norms r=16, T=512",
        d,
        {
            "modegap": [lambda a=a, g=g: torch.cat(lora_norms(a, g, down, up)) for a, g in pairs],
            "per-sample gradients (bmm)": [lambda a=a, g=g: formed(a, g) for a, g in pairs],
        },
        lambda got: relative(got, torch.cat([of_down, of_up])),
        1e-4,
        bytes=8.0 * B * T * d,
        flops=8.0 * B * T * d * r,
        rate="fp32",
        repeats=9,
    )
