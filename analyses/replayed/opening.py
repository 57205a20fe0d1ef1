"""From a store and options to a `Replay`, and the certificate of what it computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.cluster import RemoteReplay, Replicas
from modegap.engine.replay import Replay, open_source

from .config import ReplayConfig

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel
    from modegap.kernels import KernelPath
    from modegap.stores import ActivationStore

Progress = Callable[[int, int], None]
AnyReplay = Replay | RemoteReplay


@overload
def open_replay(
    loaded: LoadedModel,
    store: ActivationStore | str | Path,
    config: ReplayConfig,
    progress: Progress | None = None,
) -> Replay: ...


@overload
def open_replay(
    loaded: LoadedModel | Replicas,
    store: ActivationStore | str | Path,
    config: ReplayConfig,
    progress: Progress | None = None,
) -> AnyReplay: ...


def open_replay(
    loaded: LoadedModel | Replicas,
    store: ActivationStore | str | Path,
    config: ReplayConfig,
    progress: Progress | None = None,
) -> AnyReplay:
    """The replay of a store under the options: here, or by replicas of the model on the workers of a cluster.

    Raises:
        EngineError: see `open_source` and `Replay`.
        StoreError: the store cannot be opened.
    """
    options: dict[str, Any] = {
        "point": config.point,
        "target": config.target,
        "target_label": config.target_label,
        "prompt": config.prompt,
        "limit": config.n_samples,
    }
    if isinstance(loaded, Replicas):
        return RemoteReplay.open(loaded, store, options, config.batch_size, progress)
    source = open_source(loaded, store, **options)
    return Replay(loaded, source, batch_size=config.batch_size, progress=progress)


def replay_certificate(replay: AnyReplay, paths: Iterable[KernelPath] = ()) -> Certificate:
    """How a replay computed: the decoder's dtype, samples, kernel paths, the store's hash."""
    source = replay.source
    return Certificate(
        mode=f"{str(replay.loaded.dtype).removeprefix('torch.')} decoder, fp32 log-softmax",
        kernel_paths=path_facts(paths),
        count=len(source),
        width=source.width,
        store_hashes={"store": source.content_hash} if source.content_hash else {},
    )


def left_out(replay: AnyReplay) -> tuple[tuple[str, str], ...]:
    """(id, reason) of every sample that the replay could not use."""
    return (*replay.source.left_out, *replay.failures)


def notes_of(failures: Iterable[tuple[str, str]], retried: int = 0) -> tuple[str, ...]:
    """Sentences on the samples that are missing, for a table's notes; all their ids are in the JSON."""
    failures = tuple(failures)
    notes = []
    if retried:
        notes.append(f"{retried} batches did not fit into memory and ran again at half their size")
    if failures:
        shown = "; ".join(f"{name}: {why}" for name, why in failures[:3])
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        notes.append(f"{len(failures)} samples left out ({shown}{more})")
    return tuple(notes)
