"""The same computations over processes, GPUs and hosts, on Dask. No other package imports dask.distributed.

    with modegap.engine.cluster.connect("local:4") as cluster:
        reduce(store, point, Moments(), cluster=cluster)

Names load on first use; Dask only when a cluster is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mapping import map_tasks
    from .quotients import rayleigh_on
    from .reducing import reduce_on
    from .replicas import RemoteReplay, Replicas
    from .session import Cluster, connect, joined
    from .simulation import ClusterPlan, plan_reduction
    from .spec import ClusterSpec, parse

_HOME = {
    "Cluster": "session",
    "ClusterPlan": "simulation",
    "ClusterSpec": "spec",
    "RemoteReplay": "replicas",
    "Replicas": "replicas",
    "connect": "session",
    "joined": "session",
    "map_tasks": "mapping",
    "parse": "spec",
    "plan_reduction": "simulation",
    "rayleigh_on": "quotients",
    "reduce_on": "reducing",
}

__all__ = [
    "Cluster",
    "ClusterPlan",
    "ClusterSpec",
    "RemoteReplay",
    "Replicas",
    "connect",
    "joined",
    "map_tasks",
    "parse",
    "plan_reduction",
    "rayleigh_on",
    "reduce_on",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
