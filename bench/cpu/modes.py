"""Host Rayleigh quotients, projection energy, ablation and eigenpairs: ours and the code one would write without it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bench.harness import Case
from modegap.kernels import ablate, eigh, projection_energy, rayleigh

from .data import F32, F64, basis, graded, normal, relative, rows_of

LOOP_WIDTH = 2048
"""Beyond it a loop over all modes takes most of a minute."""
EIGH_WIDTH = 1024
"""Beyond it an eigendecomposition takes minutes on two cores."""


def rayleigh_cases(d: int) -> Iterator[Case]:
    """All d modes of one covariance against another."""
    S = torch.cov(graded(min(2 * d, 4096), d, 3).double().T)
    U = basis(d, d)
    want = torch.einsum("dk,dk->k", S @ U, U)

    def loop() -> torch.Tensor:
        matrix, modes = S.numpy(), U.numpy()
        return torch.from_numpy(np.array([modes[:, k] @ matrix @ modes[:, k] for k in range(d)]))

    paper = "paper: loop over modes, u @ S @ u"
    slow = d > LOOP_WIDTH
    yield Case(
        "Rayleigh quotients K=d",
        d,
        {
            "modegap fp64": [lambda: rayleigh(U, S)],
            "((S @ U) * U).sum(0), torch fp64": [lambda: ((S @ U) * U).sum(0)],
            "((S @ U) * U).sum(0), numpy fp64": [
                lambda: torch.from_numpy(((S.numpy() @ U.numpy()) * U.numpy()).sum(0))
            ],
            **({} if slow else {paper: [loop]}),
        },
        lambda got: relative(got, want),
        1e-12,
        bytes=16.0 * d * d,
        flops=2.0 * d**3,
        rate="fp64",
        repeats=5,
        missing={paper: f"takes most of a minute at width {d}"} if slow else {},
    )


def energy_cases(d: int) -> Iterator[Case]:
    """Sum of squares along 64 modes, and along a quarter of all, from rows that are staged."""
    n = rows_of(d)
    inputs = [normal(n, d, seed=seed).float() for seed in range(2)]
    for K in sorted({64, d // 4}):
        U = basis(d, K)
        narrow = U.float()
        want = (inputs[0].double() @ U).square().sum(0)

        def ours(x: torch.Tensor, narrow: torch.Tensor = narrow) -> torch.Tensor:
            out = torch.zeros(narrow.shape[1], dtype=F64)
            projection_energy(x, narrow, out)
            return out

        yield Case(
            f"projection energy K={K}" if K == 64 else "projection energy K=d/4",
            d,
            {
                "modegap": [lambda x=x, ours=ours: ours(x) for x in inputs],
                "(x @ U).square().sum(0)": [lambda x=x, u=narrow: (x @ u).square().sum(0) for x in inputs],
                "((x @ U) ** 2).sum(0), numpy": [
                    lambda x=x, u=narrow: torch.from_numpy(((x.numpy() @ u.numpy()) ** 2).sum(0))
                    for x in inputs
                ],
            },
            lambda got, want=want: float(((got.double() - want).abs() / want).max()),
            1e-5,
            bytes=4.0 * n * d,
            flops=2.0 * n * d * K,
            rate="fp32",
            repeats=9,
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
                "paper: float upcast": [
                    lambda z=z, u=full: (z.float() - (z.float() @ u) @ u.T).half() for z in inputs
                ],
                "float upcast, numpy": [lambda z=z, u=full: _upcast(z, u) for z in inputs],
            },
            lambda got, U=U, left=left: float((got.double() @ U).norm()) / left,
            5e-4,
            bytes=4.0 * n * d,
            flops=4.0 * n * d * K,
            rate="fp32",
        )


def _upcast(z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    wide, modes = z.numpy().astype(np.float32), u.numpy()
    return torch.from_numpy((wide - (wide @ modes) @ modes.T).astype(np.float16))


def eigh_cases(d: int) -> Iterator[Case]:
    """Eigenpairs of a covariance graded over three decades; the error is that of V diag(w) V' - S."""
    if d > EIGH_WIDTH:
        return
    S = torch.cov(graded(4 * d, d, 6).double().T)
    size = float(S.norm())

    def error(got: object) -> float:
        values, vectors = (torch.as_tensor(part) for part in got)  # type: ignore[attr-defined]
        return float(((vectors * values) @ vectors.T - S).norm()) / size

    yield Case(
        "eigh",
        d,
        {
            "modegap": [lambda: eigh(S)],
            "np.linalg.eigh": [lambda: np.linalg.eigh(S.numpy())],
            "torch.linalg.eigh": [lambda: torch.linalg.eigh(S)],
        },
        error,
        1e-13,
        flops=4.0 * d**3 / 3.0,
        rate="fp64",
        repeats=5,
    )
