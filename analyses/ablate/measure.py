"""Per-sample losses under edits, from a store by replay or from media by the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from modegap.analyses.align import Modes
from modegap.analyses.align.columns import read_columns, shared_file
from modegap.analyses.replayed.opening import left_out, open_replay
from modegap.engine.cluster import RemoteReplay
from modegap.engine.cluster.replicas import batches_of
from modegap.engine.errors import EngineError
from modegap.engine.models.score import target_nll
from modegap.kernels import KernelPath, last_path
from modegap.kernels import ablate as project_out
from modegap.stores import ActivationStore

from .config import AblateConfig

if TYPE_CHECKING:
    from modegap.engine.cluster import Replicas
    from modegap.engine.datasets import Dataset, Sample
    from modegap.engine.models import LoadedModel
    from modegap.engine.replay import Replay

Float = NDArray[np.float64]
Edit = Callable[[torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]
Removed = tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Losses of the samples.

    Attributes:
        ids: sample ids [n].
        losses: nats a token [edits, n].
        failures: (id, reason) of samples that could not be scored.
        retried: batches that ran again at half their size.
        store_hashes: of the store that was replayed.
        model: name of the model.
        path: kernel path that projected the modes out; None where none was.
    """

    ids: tuple[str, ...]
    losses: Float
    failures: tuple[tuple[str, str], ...] = ()
    retried: int = 0
    store_hashes: tuple[tuple[str, str], ...] = ()
    model: str = ""
    path: KernelPath | None = None


def as_store(data: object) -> ActivationStore | None:
    """The store that `data` is or names; None for a data set.

    Raises:
        StoreError: a path that should be a store and is none.
    """
    if isinstance(data, ActivationStore):
        return data
    return ActivationStore.open(data) if isinstance(data, str | Path) else None


def by_replay(
    loaded: LoadedModel | Replicas,
    store: ActivationStore,
    point: str,
    modes: Modes,
    file: Modes | str | Path,
    removed: Sequence[Removed],
    config: AblateConfig,
    progress: Progress | None,
) -> Measured:
    """Losses from stored rows: no encoder, no media, all conditions of a sample in the same batches.

    Args:
        loaded: the model, or its replicas on a cluster.
        store: the store.
        point: hook point that is edited.
        modes: what is removed.
        file: file of the modes, where there is one, for the workers.
        removed: mode numbers of each condition; None removes nothing.
        config: options.
        progress: called as `progress(done, total)`.

    Raises:
        EngineError: the point lies before the stored rows, or the store cannot be replayed.
    """
    replay = open_replay(loaded, store, config.replay(point), progress)
    inside = None if point == replay.source.point else point
    if isinstance(replay, RemoteReplay):
        losses, name, path = _by_workers(replay, inside, file, removed)
    else:
        name = replay.loaded.name
        losses = _losses(replay, inside, [None if i is None else remove(modes, i) for i in removed], None)
        path = _path(removed)
    hashes = (("replayed", replay.source.content_hash),)
    return Measured(
        replay.source.ids, losses, left_out(replay), len(replay.retried), hashes, model=name, path=path
    )


def _losses(
    replay: Replay, inside: str | None, edits: Sequence[Edit | None], span: tuple[int, int] | None
) -> Float:
    if inside is None:
        return replay.losses([None if fn is None else _of_rows(fn) for fn in edits], span=span)
    (found,) = replay.loaded.select([inside])
    if found.stream != "llm":
        raise EngineError(
            f"{inside} lies before the stored rows of {replay.source.point}, so replay cannot reach it; give a "
            "data set instead of the store, so that the whole model runs"
        )
    return replay.losses_inside(inside, edits, span)


def _path(removed: Sequence[Removed]) -> KernelPath | None:
    return last_path("ablate") if any(indices is not None for indices in removed) else None


def _by_workers(
    replay: RemoteReplay, inside: str | None, file: Modes | str | Path, removed: Sequence[Removed]
) -> tuple[Float, str, KernelPath | None]:
    """The same batches, each on some worker: spans of (sample, mode) pairs, whose columns of U it reads."""
    given = (str(shared_file(replay.replicas.cluster, file)), inside, tuple(removed))
    each = 1 if inside is not None else len(removed)
    batches = batches_of(len(replay.source) * each, replay.batch_size)
    losses = np.full((len(removed), len(replay.source)), np.nan)
    path: KernelPath | None = None
    for (at, of), values, ran in replay.map(_share, batches, given, "ablation"):
        losses[at, of] = values
        path = path or ran
    return losses, replay.loaded.name, path


def _share(
    replay: Replay, span: tuple[int, int], given: tuple[str, str | None, tuple[Removed, ...]]
) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64]], Float, KernelPath | None]:
    """What the batches of a span leave: (conditions, samples) and their losses."""
    file, inside, removed = given
    edits = [None if indices is None else _remove_from(file, indices) for indices in removed]
    losses = _losses(replay, inside, edits, span)
    at, of = np.nonzero(np.isfinite(losses))
    path = last_path("ablate") if any(removed[c] is not None for c in at.tolist()) else None
    return (at, of), losses[at, of], path


def _remove_from(file: str, indices: Sequence[int]) -> Edit:
    """`remove` with the modes of a file, whose columns are read when they are first needed."""
    found: list[Edit] = []

    def fn(z: torch.Tensor) -> torch.Tensor:
        if not found:
            found.append(remove_columns(read_columns(file, indices)))
        return found[0](z)

    return fn


def by_model(
    loaded: LoadedModel,
    data: Dataset | Sequence[Sample],
    point: str,
    modes: Modes,
    removed: Sequence[Removed],
    config: AblateConfig,
    progress: Progress | None,
) -> Measured:
    """Losses from media: one pass of the whole model over the samples an edit; reaches every hook point.

    Raises:
        ValueError: options that need a store.
        EngineError: an unknown hook point, or a sample that cannot be scored.
    """
    if config.target != "answer" or config.target_label is not None:
        raise ValueError(
            "target and target_label are options of a replay: give a store instead of a data set"
        )
    count = len(data) if config.n_samples is None else min(config.n_samples, len(data))
    rows = []
    for indices in removed:
        fn = None if indices is None else remove(modes, indices)
        samples = (data[index] for index in range(count))
        edit = None if fn is None else (point, fn)
        rows.append(
            target_nll(loaded, samples, batch_size=config.batch_size, edit=edit, prompt=config.prompt)
        )
        if progress is not None:
            progress(len(rows), len(removed))
    known = getattr(data, "ids", None)
    ids = known[:count] if known is not None else [data[i].id for i in range(count)]
    return Measured(tuple(map(str, ids)), np.stack(rows), model=loaded.name, path=_path(removed))


def remove(modes: Modes, indices: Sequence[int]) -> Edit:
    """z' = z - U U'z for the given modes, on whatever device z is."""
    return remove_columns(np.ascontiguousarray(modes.U[:, list(indices)]))


def remove_columns(U: Float) -> Edit:
    """The same for the columns of U [d, k]."""
    basis = torch.from_numpy(U)
    placed: dict[torch.device, torch.Tensor] = {}

    def fn(z: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != len(basis):
            raise ValueError(
                f"the hook point is {z.shape[-1]} wide, the modes {len(basis)}: align at the point that "
                "is edited"
            )
        if z.device not in placed:
            placed[z.device] = basis.to(z.device)
        return project_out(z, placed[z.device])

    return fn


def _of_rows(fn: Edit) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda z, owner: fn(z)
