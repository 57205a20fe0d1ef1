"""The oracle of `covariance_update`: one fp64 product."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import Mode, register
from modegap.kernels.workspace import Workspace


def _always(*_: object, **__: object) -> str:
    return "oracle, fp64"


@register("covariance_update", "reference", supports=_always)
def covariance_update(
    rows: torch.Tensor, gram: torch.Tensor, *, mode: Mode, workspace: Workspace | None = None
) -> None:
    """gram += rows' rows in fp64 (both triangles)."""
    x = rows.double()
    gram += x.T @ x
