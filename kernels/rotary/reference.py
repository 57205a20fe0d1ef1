"""The oracle of `rotary`: fp64, rounded once."""

from __future__ import annotations

import torch

from modegap.kernels.dispatch import register


def _always(*_: object) -> str:
    return "oracle, fp64"


@register("rotary", "reference", supports=_always)
def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differentiable by autograd, in cos and sin too."""
    return _turned(q, cos, sin), _turned(k, cos, sin)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.double().chunk(2, dim=-1)
    (c, c2), (s, s2) = (angle.double().unsqueeze(1).chunk(2, dim=-1) for angle in (cos, sin))
    return torch.cat((a * c - b * s, b * c2 + a * s2), dim=-1).to(x.dtype)
