"""Host Rayleigh quotients, projection energy and ablation: ours and the code one would write without it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench.harness import Case
from modegap.kernels import ablate, projection_energy, rayleigh

from .data import F32, F64, basis, graded, normal, relative, rows_of


def rayleigh_cases(d: int) -> Iterator[Case]:
    """All d modes of one covariance against another."""
    S = torch.cov(graded(min(2 * d, 4096), d, 3).double().T)
    U = basis(d, d)
    want = torch.einsum("dk,dk->k", S @ U, U)

    def loop() -> torch.Tensor:
        matrix, modes = S.numpy(), U.numpy()
        return torch.from_numpy(np.array([modes[:, k] @ matrix @ modes[:, k] for k in range(d)]))

    yield Case(
        "Rayleigh quotients K=d",
        d,
        {
            "modegap fp64": [lambda: rayleigh(U, S)],
            "((S @ U) * U).sum(0), fp64": [lambda: ((S @ U) * U).sum(0)],
            "loop: u @ S @ u": [loop],
        },
        lambda got: relative(got, want),
        1e-12,
        bytes=16.0 * d * d,
        flops=2.0 * d**3,
        rate="fp64",
        repeats=5,
    )


def energy_cases(d: int) -> Iterator[Case]:
    """Sum of squares along 64 modes, from rows that are staged."""
    n, K = rows_of(d), 64
    inputs = [normal(n, d, seed=seed).float() for seed in range(2)]
    U = basis(d, K)
    narrow = U.float()
    want = (inputs[0].double() @ U).square().sum(0)

    def ours(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(K, dtype=F64)
        projection_energy(x, narrow, out)
        return out

    yield Case(
        "projection energy K=64",
        d,
        {
            "modegap": [lambda x=x: ours(x) for x in inputs],
            "(x @ U).square().sum(0)": [lambda x=x: (x @ narrow).square().sum(0) for x in inputs],
        },
        lambda got: float(((got.double() - want).abs() / want).max()),
        1e-5,
        bytes=4.0 * n * d,
        flops=2.0 * n * d * K,
        rate="fp32",
    )


def ablation_cases(d: int) -> Iterator[Case]:
    """fp16 hidden states without 16, 64 and 256 modes; the error is the leakage."""
    n = min(4096, rows_of(d))
    inputs = [normal(n, d, seed=seed) for seed in range(3)]
    for K in (16, 64, 256):
        if d < K:
            continue
        U = basis(d, K)
        half, full = U.half(), U.to(F32)
        left = float((inputs[0].double() @ U).norm())
        yield Case(
            f"ablation K={K} (error: leakage)",
            d,
            {
                "modegap": [lambda z=z, U=full: ablate(z, U) for z in inputs],
                "torch.addmm half": [
                    lambda z=z, h=half: torch.addmm(z, z @ h, h.T, alpha=-1) for z in inputs
                ],
                "float upcast": [
                    lambda z=z, u=full: (z.float() - (z.float() @ u) @ u.T).half() for z in inputs
                ],
            },
            lambda got, U=U, left=left: float((got.double() @ U).norm()) / left,
            5e-4,
            bytes=4.0 * n * d,
            flops=4.0 * n * d * K,
            rate="fp32",
        )
