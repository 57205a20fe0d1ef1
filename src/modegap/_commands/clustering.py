"""`--cluster`: the same command over processes, GPUs and hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.cluster import Cluster, Replicas
    from modegap.engine.models import LoadedModel


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where the work runs.

    Attributes:
        cluster: `local:N` for N processes on this machine, a Dask scheduler's address (tcp://host:8786), or a YAML
            file that names a Dask cluster class (docs/scaling.md); this process alone unless given.
        run_folder: folder that this process and all workers see, for partial results: a command that was cut off
            goes on from them. `<out>.run` unless given; none without `out`.
    """

    cluster: str | None = None
    run_folder: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a cluster of no known form, or a folder without a cluster."""
        if self.cluster is None and self.run_folder is not None:
            raise ValueError("run_folder: it keeps what workers computed; give --cluster too")
        if self.cluster is not None and not self.cluster.strip().endswith((".yaml", ".yml")):
            from modegap.engine.cluster.spec import parse

            parse(self.cluster)


@contextmanager
def workers(options: ClusterOptions, out: str | None, console: Console) -> Iterator[Cluster | None]:
    """The cluster of the options while a command runs, None without one; says where its dashboard is."""
    if options.cluster is None:
        yield None
        return
    import shutil
    from pathlib import Path

    from modegap.engine.cluster import connect

    folder = options.run_folder or (None if out is None else f"{out}.run")
    with connect(options.cluster, folder) as cluster:
        count = len(cluster.ready())
        console.say(f"cluster {options.cluster}: {count} workers" + (
            f", dashboard {cluster.dashboard}" if cluster.dashboard else ""))  # fmt: skip
        yield cluster
    if folder is not None and options.run_folder is None:
        shutil.rmtree(
            Path(folder), ignore_errors=True
        )  # ours, and all that was kept there is in the result now


def model_for(inputs: Any, cluster: Cluster | None) -> LoadedModel | Replicas:
    """The model that the inputs name: loaded here, or by every worker."""
    from .replaying import load_model

    if cluster is None:
        return load_model(inputs)
    return cluster.replicas(
        partial(
            load_model_of,
            inputs.model,
            dtype=inputs.dtype,
            device_map=inputs.device_map,
            revision=inputs.revision,
            trust_remote_code=inputs.trust_remote_code,
        )
    )


def load_model_of(name: str, **options: Any) -> LoadedModel:
    """`modegap.load`, as a function that workers can import."""
    from modegap._facade import load

    return load(name, **options)
