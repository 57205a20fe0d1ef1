"""What the GPU cases share: sizes, random rows and bases, relative error."""

from __future__ import annotations

import torch

ROWS = 65_536
F32, F64 = torch.float32, torch.float64


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def graded(n: int, d: int) -> torch.Tensor:
    """Centred rows with scales over three decades."""
    return (torch.randn(n, d, device="cuda") * torch.logspace(-2, 1, d, device="cuda")).half()


def basis(d: int, K: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, K, device="cuda", dtype=F64))[0].contiguous()
