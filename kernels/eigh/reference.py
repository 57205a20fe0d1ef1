"""The library's `eigh` (LAPACK on the host, cuSOLVER on a GPU)."""

from __future__ import annotations

import torch

from ..dispatch import register


def _always(*_: object) -> str:
    return "torch.linalg.eigh, fp64"


@register("eigh", "reference", supports=_always)
def eigh(S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower triangle, ascending."""
    values, vectors = torch.linalg.eigh(S, UPLO="L")
    return values, vectors
