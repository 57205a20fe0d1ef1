"""`Cluster`: a connection to workers, and how a graph of tasks is carried through whatever happens to them."""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modegap._version import __version__
from modegap.engine.errors import EngineError
from modegap.engine.packing import load_packed

from .calls import Kept, execute, facts, worker_name
from .launch import dask_or_error, greeted, launch
from .spec import ClusterSpec, parse
from .traffic import socket_bytes

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel

    from .replicas import Replicas

_FIRST = 30.0
"""Seconds in which a scheduler must answer at first: an address may be wrong."""
_PATIENCE = 120.0
"""Seconds that a scheduler may be away, and that the first worker may take to come."""
_TRIES = 4
"""Times that the workers of one task may die."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the result of another task of the same graph."""

    name: str


@dataclass(frozen=True, slots=True)
class Task:
    """One call.

    Attributes:
        fn: what is called on a worker.
        args: its arguments; `Ref` stands for another task's result, `Kept` for a file's.
        path: file that keeps the result; None for none.
        need: bytes of memory it takes.
        weight: rows (or samples) that it is about, for progress.
        nbytes: bytes that it reads.
        what: what it is about, for messages.
        priority: higher ones go first.
        run: (i, n) for the i-th of n tasks of which neighbours belong to one worker, if that is free; None for any.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    path: Path | None = None
    need: int = 0
    weight: int = 0
    nbytes: int = 0
    what: str = ""
    priority: int = 0
    run: tuple[int, int] | None = None


Graph = Mapping[str, Task]
Done = Callable[[str, Task], None]


class Cluster:
    """Workers on which reductions, replays and probes run; a context manager.

    Attributes:
        spec: where they are.
        folder: where partial results are kept, so that a run that was cut off goes on; None for nowhere.
        dashboard: address of the dashboard, "" if there is none.
    """

    def __init__(self, spec: ClusterSpec, folder: Path | None = None) -> None:
        """Start or join the workers; see `connect`."""
        self.spec, self.folder = spec, folder
        self._lock = threading.Lock()
        self._scratch: Path | None = None
        self._met = False
        self._made = launch(spec)
        self._client = self._connected(_FIRST)
        self.dashboard = str(getattr(self._client, "dashboard_link", "") or "")

    def __enter__(self) -> Self:
        """The cluster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Leave the workers: those that were started here end, those of a running scheduler stay."""
        self._client.close()
        if self.spec.kind != "address":
            self._made.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def replicas(self, load: Callable[[], LoadedModel]) -> Replicas:
        """What stands for a loaded model in a replay on these workers, each of which loads its own.

        Args:
            load: makes the model; a function that workers can import, or a `functools.partial` of one.
        """
        from .replicas import Replicas

        return Replicas(self, load)

    def workers(self) -> dict[str, dict[str, Any]]:
        """Address of each worker to its `nthreads` and `memory_limit` (bytes, 0 for none)."""
        found = self._client.scheduler_info(n_workers=-1)["workers"]
        return {
            address: {"nthreads": int(one["nthreads"]), "memory_limit": int(one["memory_limit"] or 0)}
            for address, one in found.items()
        }

    def facts(self) -> dict[str, dict[str, Any]]:
        """Address of each worker to its version, host and process id, as it says itself."""
        said = self._client.run(facts, on_error="return")
        for one in said.values():
            # One that dies while it is asked is no worker any more; Dask's own errors of a lost peer are OSErrors.
            if isinstance(one, Exception) and not isinstance(one, OSError):
                raise one
        return {address: one for address, one in said.items() if not isinstance(one, Exception)}

    def traffic(self) -> dict[str, int]:
        """Bytes `read` and `written` by the scheduler's process since this was first asked."""
        found: dict[str, int] = self._client.run_on_scheduler(socket_bytes)
        return found

    def ready(self) -> dict[str, dict[str, Any]]:
        """The workers, once there is one, all of this version of modegap.

        Raises:
            EngineError: none came, or one has another version or none.
        """
        # A cluster that grows with its work has no worker before there is some.
        call = self._client.submit(worker_name, pure=False) if self.spec.adapt is not None else None
        wait = _PATIENCE if self.spec.wait is None else self.spec.wait
        try:
            self._client.wait_for_workers(1, timeout=wait)
        except TimeoutError:
            if not self.workers():
                raise EngineError(
                    f"cluster {self.spec.said}: no worker came within {wait:.0f} s; look at the scheduler's log, or "
                    "whether its queue is full (`wait: 3600` in a YAML file waits an hour)"
                ) from None
        # For all that were asked for only once: some may never come, or not come back.
        if not self._met and self.spec.workers is not None:
            with suppress(TimeoutError):
                self._client.wait_for_workers(self.spec.workers, timeout=_PATIENCE)
        self._met = True
        del call
        try:
            found = self.facts()
        except Exception as error:
            # From the worker it comes as an Exception of the text.
            if not isinstance(error, ImportError | AttributeError) and "No module named" not in str(error):
                raise
            raise EngineError(
                f"cluster {self.spec.said}: a worker cannot import modegap ({error}): install modegap {__version__} "
                "in the workers' environment"
            ) from None
        for address, one in found.items():
            if one["modegap"] != __version__:
                raise EngineError(
                    f"worker {address} on {one['host']} has modegap {one['modegap']}, this is {__version__}: install "
                    "the same version"
                )
        return self.workers()

    def scratch(self) -> Path:
        """A folder that all workers see, for matrices that do not pass the scheduler.

        Raises:
            EngineError: the workers are on other machines and no run folder was given.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            return self.folder
        if self.spec.kind != "local":
            raise EngineError(
                f"cluster {self.spec.said}: give a run folder (--run-folder) on a file system that this process "
                "and all workers mount under the same path"
            )
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="modegap-cluster-"))
        return self._scratch

    def run(
        self, make: Callable[[], Graph], wanted: Callable[[Graph], list[str]], done: Done | None = None
    ) -> list[Any]:
        """Compute a graph and return the results that are wanted, straight from the workers that hold them.

        A worker that dies costs what it had not passed on. If the scheduler goes away and comes back, the graph
        is made again, which leaves out what files hold.

        Args:
            make: the graph, children before parents; called again after the scheduler was away.
            wanted: names of the results that are returned.
            done: called after every task that ended.

        Raises:
            EngineError: a task failed, workers kept dying over it, or the scheduler did not come back.
        """
        while True:
            graph = make()
            try:
                return _Run(self._client, graph, wanted(graph), done, self.spec).results()
            except _AwayError as away:
                if self.spec.kind != "address":
                    raise EngineError(f"cluster {self.spec.said}: the scheduler is gone ({away})") from None
                logging.getLogger(__name__).warning("the scheduler is away (%s): waiting for it", away)
                self._reconnect()

    def _reconnect(self) -> None:
        with self._lock:
            self._client.close(timeout=2)
            self._client = self._connected(_PATIENCE)
            self.ready()

    def _connected(self, seconds: float) -> Any:
        distributed = dask_or_error()
        end = time.monotonic() + seconds
        while True:
            try:
                if self.spec.kind == "address":
                    greeted(self.spec.address, min(seconds, 10))
                return distributed.Client(
                    self._made, timeout=min(seconds, 10), set_as_default=False, direct_to_workers=True
                )
            except OSError as error:
                if self.spec.kind != "address" or time.monotonic() > end:
                    raise EngineError(
                        f"cluster {self.spec.said}: no scheduler answers ({' '.join(str(error).split())}): start one "
                        "with `dask scheduler`, or check the address and the firewall"
                    ) from None
                time.sleep(0.5)


class _AwayError(Exception):
    """The connection to the scheduler is lost."""


class _Run:
    """One submission of a graph."""

    def __init__(
        self, client: Any, graph: Graph, wanted: list[str], done: Done | None, spec: ClusterSpec
    ) -> None:
        self._client, self._graph, self._spec = client, graph, spec
        self._wanted, self._done = set(wanted), done
        self._order = wanted
        self._futures: dict[str, Any] = {}
        self._tries: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._finished: set[str] = set()
        self._waiting = list(graph)
        self._nonce = uuid.uuid4().hex[:12]
        self._workers: list[str] = []
        if any(task.run is not None for task in graph.values()):
            self._workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        # A result is let go when all that need it are done: how many still do.
        self._users = dict.fromkeys(graph, 0)
        for task in graph.values():
            for ref in _refs(task):
                self._users[ref] += 1

    def results(self) -> list[Any]:
        try:
            with _connection():
                coming = dask_or_error().as_completed(self._ready(), loop=self._client.loop)
                for future in coming:
                    if self._ended(self._names[future.key], future):
                        coming.update(self._ready())
                    else:
                        coming.add(future)  # it runs again
                found = self._client.gather([self._futures[name] for name in self._order], direct=True)
            return [load_packed(Path(one.path)) if isinstance(one, Kept) else one for one in found]
        finally:
            self._futures.clear()

    def _ready(self) -> list[Any]:
        """Submit what can go: results in files must be there, others are the scheduler's to wait for."""
        made, waiting = [], []
        for name in self._waiting:
            task = self._graph[name]
            refs = list(_refs(task))
            blocked = any(
                ref not in self._futures or (self._graph[ref].path is not None and ref not in self._finished)
                for ref in refs
            )
            if blocked:
                waiting.append(name)
                continue
            future = self._futures[name] = self._submit(name, task)
            self._names[future.key] = name
            made.append(future)
        self._waiting = waiting
        return made

    def _submit(self, name: str, task: Task) -> Any:
        args: list[Any] = []
        for arg in task.args:
            if isinstance(arg, Ref):
                path = self._graph[arg.name].path
                args.append(self._futures[arg.name] if path is None else Kept(str(path)))
            else:
                args.append(arg)
        target = None if task.path is None else str(task.path)
        place: dict[str, Any] = {}
        if task.run is not None and self._workers:
            i, n = task.run
            chosen = self._workers[i * len(self._workers) // n]
            # Dask may give it to another one: where that is idle, or this one is gone.
            place = {"workers": [chosen], "allow_other_workers": True}
        return self._client.submit(
            execute, task.fn, target, task.need, *args, key=f"{name}-{self._nonce}", priority=task.priority,
            pure=False, **place,
        )  # fmt: skip

    def _ended(self, name: str, future: Any) -> bool:
        """Whether a task is done; False where it was sent again."""
        task = self._graph[name]
        if future.status == "finished":
            self._finished.add(name)
            if self._done is not None:
                self._done(name, task)
            for ref in _refs(task):
                self._users[ref] -= 1
                if not self._users[ref] and ref not in self._wanted:
                    self._futures[ref] = None
            return True
        if future.status in ("cancelled", "lost"):
            raise _AwayError("it has forgotten the tasks")
        error = future.exception()
        if isinstance(error, RuntimeError) and "deserialization of the task graph" in str(error):
            raise EngineError(
                f"cluster {self._spec.said}: the scheduler cannot read the tasks: install modegap {__version__}, and "
                "the versions of Python and Dask that are used here, where `dask scheduler` runs"
            ) from error
        if not isinstance(error, dask_or_error().KilledWorker):
            raise error
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._tries[name] >= _TRIES:
            raise EngineError(
                f"{task.what or name}: workers kept dying over it. It takes about {task.need / 1e9:.2f} GB; give the "
                "workers more memory than that, or look at their logs"
            )
        future.retry()
        return False


def _refs(task: Task) -> Iterator[str]:
    return (arg.name for arg in task.args if isinstance(arg, Ref))


@contextmanager
def _connection() -> Iterator[None]:
    """Turns what Dask raises when the scheduler goes away into one error."""
    lost = (dask_or_error().CancelledError, importlib.import_module("distributed.comm").CommClosedError)
    try:
        yield
    except (CancelledError, TimeoutError, *lost) as error:
        raise _AwayError(type(error).__name__) from error


def connect(cluster: str | ClusterSpec | Cluster, folder: str | Path | None = None) -> Cluster:
    """The workers that a `--cluster` option names, started or joined.

    Args:
        cluster: `local`, `local:N`, `tcp://host:port`, a YAML file, or what those were parsed to.
        folder: where partial results are kept, on a file system that all workers mount; None for nowhere.

    Raises:
        ValueError: not one of these.
        EngineError: Dask or the cluster's package is not installed, or nothing answers.
    """
    if isinstance(cluster, Cluster):
        return cluster
    spec = parse(cluster) if isinstance(cluster, str) else cluster
    return Cluster(spec, None if folder is None else Path(folder).absolute())


@contextmanager
def joined(cluster: str | Cluster | None, folder: str | Path | None = None) -> Iterator[Cluster | None]:
    """`connect` for the time of one call: closed afterwards, unless it was open before; None stays None."""
    if cluster is None or isinstance(cluster, Cluster):
        yield cluster
        return
    with connect(cluster, folder) as opened:
        yield opened


__all__ = ["Cluster", "Graph", "Kept", "Ref", "Task", "connect", "joined"]
