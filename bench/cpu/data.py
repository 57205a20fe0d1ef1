"""What the host cases share: sizes, rows, bases, relative error."""

from __future__ import annotations

import torch

F32, F64 = torch.float32, torch.float64
BLOCK = 2048
"""Rows a batch of the streaming loops."""


def rows_of(d: int) -> int:
    """Rows of a case: 8,192, fewer where a width is narrow."""
    return min(8192, 8 * d)


def graded(n: int, d: int, seed: int) -> torch.Tensor:
    """fp16 rows [n, d]: scales over three decades, 16 massive channels with mean/std 60."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=random) * torch.logspace(-2, 1, d)
    massive = torch.linspace(0, d - 1, 16).long().unique()
    rows[:, massive] += 60.0 * torch.logspace(-2, 1, d)[massive]
    return rows.half()


def normal(*shape: int, seed: int) -> torch.Tensor:
    """fp16 standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).half()


def basis(d: int, K: int) -> torch.Tensor:
    """fp64 [d, K] with orthonormal columns."""
    columns = torch.randn(d, K, dtype=F64, generator=torch.Generator().manual_seed(d + K))
    return torch.linalg.qr(columns)[0].contiguous()


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """|got - want| / |want|."""
    return float((got.double() - want).norm() / want.norm())
