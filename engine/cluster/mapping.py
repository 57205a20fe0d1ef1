"""Independent calls over workers, each kept in a file where there is a run folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modegap._version import __version__

from .reducing import fingerprint, parcel
from .session import Cluster, Task

Progress = Callable[[int, int], None]


def map_tasks(
    cluster: Cluster,
    fn: Callable[..., Any],
    items: Sequence[Any],
    shared: Any = None,
    *,
    name: str,
    weights: Sequence[int] | None = None,
    need: int = 0,
    progress: Progress | None = None,
) -> list[Any]:
    """`[fn(item, shared) for item in items]`, computed by the workers.

    Args:
        cluster: the workers.
        fn: a function of a module that the workers have.
        items: what the calls differ in; small.
        shared: what they share; large ones travel once, through a file.
        name: what is computed, for file names and messages.
        weights: of each call, for progress.
        need: bytes of memory a call.
        progress: called as `progress(done, total)` in the units of `weights`.

    Raises:
        EngineError: a call failed; names the worker.
    """
    cluster.ready()
    given = parcel(cluster, shared)
    sizes = [1] * len(items) if weights is None else list(weights)
    folder: Path | None = None
    if cluster.folder is not None:
        key = hashlib.sha256(repr((__version__, name, fn.__module__, fn.__qualname__)).encode())
        key.update(fingerprint((list(items), shared)).encode())
        folder = cluster.folder / f"{name}-{key.hexdigest()[:24]}"
    names = [f"{name}-{i}" for i in range(len(items))]
    done = [0]

    def make() -> dict[str, Task]:
        done[0] = 0
        return {
            names[i]: Task(
                _call,
                (fn, item, given),
                None if folder is None else folder / f"{i}.part",
                need,
                weight=sizes[i],
                what=f"{name} {i + 1} of {len(items)}",
            )
            for i, item in enumerate(items)
        }

    def ended(_: str, task: Task) -> None:
        done[0] += task.weight
        if progress is not None:
            progress(done[0], sum(sizes))

    results = cluster.run(make, lambda graph: names, ended)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return results


def _call(fn: Callable[..., Any], item: Any, shared: Any) -> Any:
    return fn(item, shared.reduction)
