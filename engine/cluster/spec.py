"""What `--cluster` may say: `local[:N]`, a scheduler's address, or a YAML file that names a Dask cluster class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from modegap._names import did_you_mean
from modegap.engine.errors import EngineError

_SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
MODULES = {
    "dask_cuda": "dask-cuda",
    "dask_jobqueue": "dask-jobqueue",
    "dask_kubernetes": "dask-kubernetes",
    "distributed": "distributed",
}
"""Modules that a file may name a cluster class of, and the packages that they come with."""
_KEYS = ("cluster", "options", "workers", "minimum", "maximum", "wait")


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """Where the workers are.

    Attributes:
        kind: `local` starts processes on this machine, `address` joins a running scheduler, `class` makes a
            Dask cluster object.
        workers: processes to start; None leaves it to the machine or to the cluster class.
        address: of the scheduler.
        path: `module.Class` of the cluster.
        options: its keyword arguments.
        adapt: (least, most) workers where the cluster is to grow and shrink; None for a fixed number.
        wait: seconds that the first worker may take to come; None for two minutes.
        said: as it was given, for messages.
    """

    kind: Literal["local", "address", "class"]
    workers: int | None = None
    address: str = ""
    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    adapt: tuple[int, int] | None = None
    wait: float | None = None
    said: str = "local"


def parse(text: str) -> ClusterSpec:
    """The cluster that a `--cluster` option names; a file is read, nothing is started.

    Raises:
        ValueError: it is none of the three forms.
        EngineError: the file is not there, is not YAML, or names what is not allowed.
    """
    text = text.strip()
    name, colon, count = text.partition(":")
    if name == "local":
        if colon and not (count.isdecimal() and int(count) > 0):
            raise ValueError(f"cluster: got {text!r}, expected local or local:N with N workers")
        return ClusterSpec("local", int(count) if colon else None, said=text)
    if text.startswith(_SCHEMES):
        return ClusterSpec("address", address=text, said=text)
    if text.endswith((".yaml", ".yml")):
        return _file(Path(text))
    raise ValueError(
        f"cluster: got {text!r}, expected local, local:N, a scheduler's address (tcp://host:8786) or a YAML file"
    )


def _file(path: Path) -> ClusterSpec:
    import yaml

    try:
        given = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise EngineError(f"cluster: there is no file {path}; docs/scaling.md shows what it holds") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EngineError(f"cluster: {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict) or not isinstance(given.get("cluster"), str):
        raise EngineError(
            f"cluster: {path} must say `cluster: module.Class`, e.g. dask_jobqueue.SLURMCluster"
        )
    for key in given:
        if key not in _KEYS:
            raise EngineError(f"cluster: {path} holds {key!r}{did_you_mean(str(key), _KEYS)}; it may hold "
                              f"{', '.join(_KEYS)}")  # fmt: skip
    options = given.get("options") or {}
    if not isinstance(options, dict):
        raise EngineError(f"cluster: options in {path} must be settings by name, got {options!r}")
    numbers = {key: given.get(key) for key in ("workers", "minimum", "maximum")}
    for key, value in numbers.items():
        if value is not None and (type(value) is not int or value < (key != "minimum")):
            raise EngineError(f"cluster: {key} in {path} must be a number of workers, got {value!r}")
    if numbers["maximum"] is None and numbers["minimum"] is not None:
        raise EngineError(f"cluster: {path} gives minimum without maximum; give both, or workers")
    if numbers["maximum"] is not None and numbers["workers"] is not None:
        raise EngineError(f"cluster: {path} gives workers and maximum; give a number, or a least and a most")
    adapt = None if numbers["maximum"] is None else (numbers["minimum"] or 0, numbers["maximum"])
    wait = given.get("wait")
    if wait is not None and (type(wait) not in (int, float) or not wait > 0):
        raise EngineError(f"cluster: wait in {path} must be seconds, got {wait!r}")
    return ClusterSpec(
        "class", numbers["workers"], path=_allowed(given["cluster"], path), options=options, adapt=adapt,
        wait=wait, said=str(path),
    )  # fmt: skip


def _allowed(name: str, path: Path) -> str:
    module, dot, kind = name.rpartition(".")
    if not dot or module.partition(".")[0] not in MODULES or not kind.isidentifier():
        raise EngineError(
            f"cluster: {path} names {name!r}; a cluster class is one of {', '.join(sorted(MODULES))}, "
            "e.g. dask_jobqueue.SLURMCluster, dask_cuda.LocalCUDACluster, dask_kubernetes.operator.KubeCluster"
        )
    return name
