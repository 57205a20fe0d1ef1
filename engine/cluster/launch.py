"""From a `ClusterSpec` to a running Dask cluster."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError
from modegap.engine.machine import PROCESSES, cores

from .spec import MODULES, ClusterSpec

_START_SECONDS = 60


def dask_or_error() -> Any:
    """The module `distributed`.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise EngineError(
            f"a cluster needs Dask ({error}): pip install 'distributed>=2024.8', and bokeh for its dashboard"
        ) from None


def launch(spec: ClusterSpec) -> Any:
    """What a Dask client connects to: a cluster object that was started, or a scheduler's address.

    Raises:
        EngineError: the cluster's package is not installed, or it did not start.
    """
    dask_or_error()
    if spec.kind == "address":
        return spec.address
    if spec.kind == "local":
        return _local(spec.workers)
    module, _, name = spec.path.rpartition(".")
    package = MODULES[module.partition(".")[0]]
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise EngineError(
            f"cluster: {spec.path} cannot be imported ({error}): pip install {package}"
        ) from None
    except AttributeError:
        raise EngineError(
            f"cluster: {module} has no class {name}; see the documentation of {package}"
        ) from None
    cluster = None
    try:
        with _quiet():
            cluster = kind(**spec.options)
            if not hasattr(cluster, "scale"):
                raise EngineError(
                    f"cluster: {spec.path} of {spec.said} is no class of clusters, e.g. LocalCluster"
                )
            _scaled(cluster, spec)
    except (TypeError, ValueError, OSError, RuntimeError, EngineError) as error:
        with _quiet(), suppress(Exception):
            if cluster is not None:
                cluster.close()
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"cluster: {spec.path} of {spec.said} did not start: {_chain(error)}") from error
    return cluster


def greeted(address: str, seconds: float) -> None:
    """Wait for the first byte of whatever listens there: Dask's client waits for ever for an HTTP server's.

    Raises:
        OSError: nothing listens, or it does not speak first, as a scheduler does.
    """
    if not address.startswith("tcp://"):
        return
    host, port = importlib.import_module("distributed.comm").get_address_host_port(address)
    with socket.create_connection((host, port), seconds) as connection:
        connection.settimeout(seconds)
        try:
            found = connection.recv(1)
        except TimeoutError:
            found = b""
    if not found:
        raise OSError("what listens there is no scheduler; a dashboard has a port of its own")


def _scaled(cluster: Any, spec: ClusterSpec) -> None:
    """Ask for the workers; what a job queue says to that (no `sbatch`, an unknown queue) is raised here.

    Dask asks in the background, logs what goes wrong there, and leaves the client to wait for workers.
    """
    if spec.adapt is not None:
        cluster.adapt(minimum=spec.adapt[0], maximum=spec.adapt[1])
    elif spec.workers is not None and isinstance(cluster, dask_or_error().SpecCluster):

        async def asked() -> None:
            cluster.scale(spec.workers)
            await cluster

        cluster.sync(asked)
    elif spec.workers is not None:
        cluster.scale(spec.workers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Dask's and tornado's logs of an error that is raised as well."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado.application", "asyncio")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def _chain(error: BaseException) -> str:
    """The error and what it came from: Dask says "Nanny failed to start", and why below that."""
    found: list[str] = []
    one: BaseException | None = error
    while one is not None:
        text = " ".join(str(one).split()).rstrip(".")
        if text and not any(text in said for said in found):
            found.append(text)
        one = one.__cause__
    return ": ".join(found)


def _local(workers: int | None) -> Any:
    """Processes of one thread each, restarted where they die, and one GPU each where there are GPUs.

    They are started by command, not forked or spawned from this process: a script needs no `__main__` guard.
    The scheduler lives in this process, so that all of them end with it, however it ends.
    """
    distributed = dask_or_error()
    limit = importlib.import_module("distributed.system").MEMORY_LIMIT

    from .processes import SETTINGS, QuietWorker

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    gpus = visible_gpus()
    count = workers or (len(gpus) or cores())
    options = {"nthreads": 1, "memory_limit": int(limit / count), "host": "127.0.0.1"}
    options |= {"death_timeout": _START_SECONDS, "dashboard": False}
    made = {}
    for number in range(count):
        env = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        env[PROCESSES] = str(count)
        # Threads of linear algebra: what the cores give each process.
        env["OMP_NUM_THREADS"] = str(max(1, cores() // count))
        made[number] = {
            "cls": QuietWorker,
            "options": {"name": str(number), "worker_kwargs": {**options, "env": env}},
        }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }
    with importlib.import_module("dask").config.set(SETTINGS):
        return distributed.SpecCluster(workers=made, scheduler=scheduler, silence_logs=logging.CRITICAL)


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asks no driver."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i, _ in enumerate(folder.iterdir())] if folder.is_dir() else []
