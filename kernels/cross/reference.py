"""The oracle of `cross_update`: one fp64 product."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace


def _always(*_: object, **__: object) -> str:
    return "oracle, fp64"


@register("cross_update", "reference", supports=_always)
def cross_update(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """out += a' b in fp64."""
    out += a.double().T @ b.double()
