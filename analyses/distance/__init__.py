"""Distances between the modal and the text law: Wasserstein, MMD, CKA."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classes import rows_of_samples
    from .compute import distance
    from .config import DistanceConfig
    from .kernel import bandwidth, linear_cka, mmd2, mmd2_features, participation_ratio
    from .outcome import ClassDistance, DistanceResult, PairDistance
    from .transport import Estimate, gaussian_w2, sliced_w1, w1, w1_bootstrap

__all__ = [
    "ClassDistance",
    "DistanceConfig",
    "DistanceResult",
    "Estimate",
    "PairDistance",
    "bandwidth",
    "distance",
    "gaussian_w2",
    "linear_cka",
    "mmd2",
    "mmd2_features",
    "participation_ratio",
    "rows_of_samples",
    "sliced_w1",
    "w1",
    "w1_bootstrap",
]

# Loaded on first use: the options alone, which a command line needs for its help, import no torch.
_HOMES = {
    "ClassDistance": "outcome",
    "DistanceConfig": "config",
    "DistanceResult": "outcome",
    "Estimate": "transport",
    "PairDistance": "outcome",
    "bandwidth": "kernel",
    "distance": "compute",
    "gaussian_w2": "transport",
    "linear_cka": "kernel",
    "mmd2": "kernel",
    "mmd2_features": "kernel",
    "participation_ratio": "kernel",
    "rows_of_samples": "classes",
    "sliced_w1": "transport",
    "w1": "transport",
    "w1_bootstrap": "transport",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
