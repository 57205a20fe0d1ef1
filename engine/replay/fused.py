"""One kernel for each RMS norm while a replay runs.

transformers writes the norm as seven element-wise operations in fp32. On an H100 their reads and writes are
about a sixth of the time of a 7B decoder's forward and backward at 600 positions (by bytes moved), and what they
keep for the backward is a quarter of its memory. torch's own `rms_norm` is one kernel with the same arithmetic,
rounded once instead of twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

# Largest difference from the module's own result that two roundings explain, in units of its dtype's precision.
_ROUNDINGS = 4


@contextmanager
def fused_norms(model: nn.Module) -> Iterator[int]:
    """While the block runs, RMS norms of a half-precision CUDA model are single kernels; yields how many.

    A module takes part where its class is called `...RMSNorm` and the fused kernel gives what the module gives on
    random rows, up to rounding: another formula (Gemma's 1 + weight, say) is left as it is. Modules with hooks
    keep them.
    """
    replaced: list[nn.Module] = []
    agrees: dict[tuple[type, int], bool] = {}
    try:
        for module in model.modules():
            fused = _fused(module)
            if fused is None:
                continue
            weight: Any = module.weight
            key = (type(module), len(weight))
            if key not in agrees:
                agrees[key] = _agrees(module, fused)
            if agrees[key]:
                module.__dict__["forward"] = fused  # the instance's: found before the class's method
                replaced.append(module)
        yield len(replaced)
    finally:
        for module in replaced:
            module.__dict__.pop("forward", None)


def _fused(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The module's norm as one call; None where it is no RMS norm that a fused kernel serves."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or "forward" in module.__dict__:
        return None
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or len(list(module.parameters())) != 1:
        return None
    return rms_norm(module) if _pays(weight) else None


def _pays(weight: torch.Tensor) -> bool:
    return weight.device.type == "cuda" and weight.dtype in (torch.float16, torch.bfloat16)


def rms_norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """torch's fused norm with the weight and the epsilon of a transformers module."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6))
    return partial(_apply, module.weight, float(eps))


def _apply(weight: torch.Tensor, eps: float, hidden_states: torch.Tensor) -> torch.Tensor:
    kind = hidden_states.device.type
    if hidden_states.dtype != weight.dtype or not torch.is_autocast_enabled(kind):
        return nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)
    # autocast would compute in fp32 and hand fp32 on, for every layer behind to narrow again
    with torch.autocast(kind, enabled=False):
        return nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)


@torch.no_grad()
def _agrees(module: nn.Module, fused: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    weight: Any = module.weight
    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(4, weight.shape[0], device=weight.device, dtype=torch.float32, generator=generator)
    x = (x * torch.tensor([0.01, 1.0, 10.0, 100.0], device=x.device)[:, None]).to(weight.dtype)
    expected, found = type(module).forward(module, x), fused(x)
    room = _ROUNDINGS * torch.finfo(weight.dtype).eps * expected.float().abs() + 1e-6
    return bool(((found.float() - expected.float()).abs() <= room).all())
