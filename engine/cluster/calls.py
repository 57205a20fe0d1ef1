"""What runs on a worker: a call whose result is kept in a file, if asked for, and whose memory is guarded."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError, ValuesError
from modegap.engine.packing import best_pickler, load_packed, save_packed
from modegap.stores.errors import StoreError

from .launch import dask_or_error
from .memory import fits

_LATE_SECONDS = 20.0
_BACK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """Stands for the result of a task that an earlier run left in a file."""

    path: str


def execute(fn: Callable[..., Any], path: str | None, need: int, *args: Any) -> Any:
    """`fn(*args)`; with a path the result goes into that file, and `Kept` is returned for it.

    Args:
        fn: the work.
        path: file of the result; None returns it.
        need: bytes of memory that it takes; tasks of one worker wait for each other where they would not fit.
        args: of `fn`; `Kept` ones are read first.

    Raises:
        EngineError: the work failed by what a user can mend; the message names the worker, unless any would fail.
    """
    if path is not None and Path(path).exists():
        return Kept(path)
    _elsewhere_if_small(need)
    try:
        with _room(need):
            result = fn(*(_read(arg) if isinstance(arg, Kept) else arg for arg in args))
    except ValuesError:
        raise
    except (StoreError, EngineError, OSError) as error:
        raise EngineError(f"worker {worker_name()}: {' '.join(str(error).split())}") from None
    if path is None:
        return result
    try:
        save_packed(Path(path), result, best_pickler())
    except OSError as error:
        raise EngineError(
            f"worker {worker_name()} cannot write {path} ({error.strerror}): give a run folder that all "
            "workers mount under the same path"
        ) from error
    return Kept(path)


def _read(kept: Kept) -> Any:
    """A result from its file, which a network file system may show a little late."""
    end = time.monotonic() + _LATE_SECONDS
    while True:
        try:
            return load_packed(Path(kept.path))
        except FileNotFoundError:
            if time.monotonic() > end:
                raise EngineError(
                    f"{kept.path} is not there: give a run folder that all workers mount under the same path"
                ) from None
            time.sleep(0.2)


def worker_name() -> str:
    """Address and host of the worker that this runs on."""
    worker = _worker()
    return socket.gethostname() if worker is None else f"{worker.address} on {socket.gethostname()}"


def facts() -> dict[str, Any]:
    """What a client wants to know about a worker before it sends work."""
    import sys

    from modegap._version import __version__

    worker = _worker()
    return {
        "modegap": __version__,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu_seconds": time.process_time(),
        "memory": None if worker is None else worker.memory_manager.memory_limit,
    }


def _worker() -> Any:
    try:
        return dask_or_error().get_worker()
    except ValueError:  # called elsewhere, by a test
        return None


class _Gate:
    """Admits as many bytes at a time as the worker has; one task alone always."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held = 0

    @contextmanager
    def admit(self, need: int, limit: int) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: not self._held or self._held + need <= limit)
            self._held += need
        try:
            yield
        finally:
            with self._free:
                self._held -= need
                self._free.notify_all()


_GATE = _Gate()


def _elsewhere_if_small(need: int) -> None:
    """Hand the task back where this worker's memory cannot hold it; the client has seen one that can."""
    worker = _worker()
    limit = None if worker is None else worker.memory_manager.memory_limit
    if limit and need and not fits(need, limit):
        time.sleep(_BACK_SECONDS)  # meanwhile the others are free, and this one is not
        raise dask_or_error().Reschedule()


def _room(need: int) -> Any:
    worker = _worker()
    limit = None if worker is None else worker.memory_manager.memory_limit
    return _GATE.admit(need, limit) if limit else nullcontext()
