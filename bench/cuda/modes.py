"""GPU projection energy, Rayleigh quotients, ablation and eigendecomposition, at one width."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.harness import Call, Case
from modegap.kernels import ablate, projection_energy, rayleigh
from modegap.kernels.eigh import eigh

from .data import F64, ROWS, basis, relative


def energy_cases(d: int) -> Iterator[Case]:
    inputs = [torch.randn(ROWS, d, device="cuda").half() for _ in range(2)]
    for K in (64, 512, d):
        U = basis(d, K)
        half = U.half()
        want = sum((part.double() @ U).square().sum(0) for part in inputs[0].split(8192))

        # The operation adds to what is there; the gate looks at the first call.
        def ours(basis: torch.Tensor, out: torch.Tensor) -> list[Call]:
            def call(x: torch.Tensor) -> torch.Tensor:
                projection_energy(x, basis, out)
                return out

            return [lambda x=x: call(x) for x in inputs]

        def fresh(K: int = K) -> torch.Tensor:
            return torch.zeros(K, dtype=F64, device="cuda")

        providers: dict[str, list[Call]] = {"modegap, fp16 U": ours(half, fresh())}
        if K <= 512:
            providers["modegap, fp64 U (high and low parts)"] = ours(U, fresh())
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
        bytes=16.0 * d * d,
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
