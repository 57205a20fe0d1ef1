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
from modegap.analyses.replayed.opening import left_out, open_replay
from modegap.engine.errors import EngineError
from modegap.engine.models.score import target_nll
from modegap.kernels import ablate as project_out
from modegap.stores import ActivationStore

from .config import AblateConfig

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset, Sample
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]
Edit = Callable[[torch.Tensor], torch.Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Losses of the samples.

    Attributes:
        ids: sample ids [n].
        losses: nats a token [edits, n].
        failures: (id, reason) of samples that could not be scored.
        retried: batches that ran again at half their size.
        store_hashes: of the store that was replayed.
    """

    ids: tuple[str, ...]
    losses: Float
    failures: tuple[tuple[str, str], ...] = ()
    retried: int = 0
    store_hashes: tuple[tuple[str, str], ...] = ()


def as_store(data: object) -> ActivationStore | None:
    """The store that `data` is or names; None for a data set.

    Raises:
        StoreError: a path that should be a store and is none.
    """
    if isinstance(data, ActivationStore):
        return data
    return ActivationStore.open(data) if isinstance(data, str | Path) else None


def by_replay(
    loaded: LoadedModel,
    store: ActivationStore,
    point: str,
    edits: Sequence[Edit | None],
    config: AblateConfig,
    progress: Progress | None,
) -> Measured:
    """Losses from stored rows: no encoder, no media, all conditions of a sample in the same batches.

    Raises:
        EngineError: the point lies before the stored rows, or the store cannot be replayed.
    """
    options = config.replay(point)
    replay = open_replay(loaded, store, options, progress)
    if point == replay.source.point:
        losses = replay.losses([None if fn is None else _of_rows(fn) for fn in edits])
    else:
        (found,) = loaded.select([point])
        if found.stream != "llm":
            raise EngineError(
                f"{point} lies before the stored rows of {replay.source.point}, so replay cannot reach it; give a "
                "data set instead of the store, so that the whole model runs"
            )
        losses = replay.losses_inside(point, edits)
    hashes = (("replayed", replay.source.content_hash),)
    return Measured(replay.source.ids, losses, left_out(replay), len(replay.retried), hashes)


def by_model(
    loaded: LoadedModel,
    data: Dataset | Sequence[Sample],
    point: str,
    edits: Sequence[Edit | None],
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
    for fn in edits:
        samples = (data[index] for index in range(count))
        edit = None if fn is None else (point, fn)
        rows.append(
            target_nll(loaded, samples, batch_size=config.batch_size, edit=edit, prompt=config.prompt)
        )
        if progress is not None:
            progress(len(rows), len(edits))
    known = getattr(data, "ids", None)
    ids = known[:count] if known is not None else [data[i].id for i in range(count)]
    return Measured(tuple(map(str, ids)), np.stack(rows))


def remove(modes: Modes, indices: Sequence[int]) -> Edit:
    """z' = z - U U'z for the given modes, on whatever device z is."""
    basis = torch.from_numpy(np.ascontiguousarray(modes.U[:, list(indices)]))
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
