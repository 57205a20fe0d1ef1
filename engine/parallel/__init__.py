"""Several processes that `torchrun` started, one a GPU, share a capture or a reduction; no Dask.

    torchrun --nproc-per-node 4 -m modegap extract MODEL DATA store.zarr --points adapter_output
    torchrun --nproc-per-node 4 -m modegap cov store.zarr adapter_output --device cuda

Captures are merged by the store: every process writes chunks of its own. Reductions are merged by
torch.distributed, two and two, and every process has the result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .ranks import Ranks, launched, rank_of_env

if TYPE_CHECKING:
    from .reducing import reduce

_HOME = {"reduce": "reducing"}

__all__ = ["Ranks", "launched", "rank_of_env", "reduce"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
