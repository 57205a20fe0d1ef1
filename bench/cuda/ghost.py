"""GPU ghost norms of linear and LoRA weights: ours beside the obvious code, at one width."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench import peers
from bench.harness import Case
from modegap.kernels.ghost_norms import ghost_norms, lora_norms

from .data import F32, relative


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

        others, missing = peers.ghost(pairs, (F32, torch.bfloat16, torch.float16))
        yield Case(
            f"ghost norms T={T}",
            d,
            {
                "modegap": [lambda a=a, g=g: ghost_norms(a, g) for a, g in pairs],
                "per-sample gradients (bmm)": [lambda a=a, g=g: entries(a, g) for a, g in pairs],
                "two Gram matrices (bmm)": [lambda a=a, g=g: grams(a, g) for a, g in pairs],
                **others,
            },
            lambda got, want=want: relative(got, want),
            1e-3,
            bytes=4.0 * B * T * d,
            flops=2.0 * B * T * (T + 1) * d,
            repeats=9,
            inaccurate=frozenset({peers.opacus_in(torch.bfloat16)} & others.keys()),
            missing=missing,
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
