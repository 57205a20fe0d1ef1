"""`swap`: a sample's class component in a subspace replaced by another class's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.ablate.statistics import paired
from modegap.analyses.ablate.subsets import Subset, subsets_of
from modegap.analyses.align import Modes
from modegap.analyses.lipschitz.diameter import mean_rows
from modegap.analyses.probe.labels import categories, classes_of
from modegap.analyses.replayed.intervals import Estimate, bootstrap, mean_interval
from modegap.analyses.replayed.opening import Progress, left_out, open_replay, replay_certificate
from modegap.analyses.result import with_options
from modegap.engine.replay import Replay
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .config import SwapConfig
from .donors import class_means, draw_donors, moves, swapping
from .outcome import Swapped, SwapResult

if TYPE_CHECKING:
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]


def swap(
    loaded: LoadedModel,
    store: ActivationStore | str | Path,
    modes: Modes | str | Path,
    config: SwapConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> SwapResult:
    """Divergence of the predictions when a class's mean component is swapped and each position's residual kept.

    z'_t = z_t + U U'(mu_donor - mean_t z_t), mu_donor the mean over the donor class's samples in this store. KL is
    from the unedited to the edited predictions, a mean over the scored positions. All conditions of a sample run
    in one batch with the unedited one.

    Args:
        loaded: the model whose decoder is replayed.
        store: a store with token rows and the label column `config.by`.
        modes: from `align`, or the file that `Modes.save` wrote.
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every batch.

    Raises:
        ValueError: unknown options or subspaces, modes of another width, or fewer than two classes.
        EngineError: rows, targets or a model that cannot be replayed.
        StoreError: the store cannot be read, or an unknown label column.
    """
    config = with_options(config or SwapConfig(), options)
    modes = modes if isinstance(modes, Modes) else Modes.load(modes)
    store = as_store(store)
    if config.by not in store.labels:
        raise StoreError(unknown_name("label", config.by, store.labels))
    subspaces = _subspaces(modes, config)
    replay = open_replay(loaded, store, config, progress)
    if modes.d != replay.source.width:
        raise ValueError(
            f"the modes are {modes.d} wide, the rows at {replay.source.point} {replay.source.width}: align at "
            "that point"
        )
    names, every, means = _means(store, replay.source.point, config)
    codes = every[[item.index for item in replay.source.items]]
    known = np.flatnonzero(codes >= 0)
    source = replay.source.subset(known.tolist(), f"it has no value of {config.by}")
    replay, codes = Replay(loaded, source, batch_size=config.batch_size, progress=progress), codes[known]
    rows = mean_rows(store, source.point, [item.index for item in source.items])
    donors = [draw_donors(codes, config.seed + i) for i in range(config.donors)]
    bases = [modes.U[:, list(subspace.indices)] for subspace in subspaces]
    edits = [swapping(means, donor, u) for u in bases for donor in donors]
    losses, kl = replay.compare(edits)
    found = []
    for at, (subspace, u) in enumerate(zip(subspaces, bases, strict=True)):
        here = slice(at * len(donors), (at + 1) * len(donors))
        squared = [moves(means, rows, codes, donor, u) for donor in donors]
        found.append(
            _swapped(
                subspace,
                modes,
                losses[0],
                losses[1:][here],
                kl[here],
                np.stack([pair[config.target == "paper"] for pair in squared]),
                config,
            )
        )
    return SwapResult(
        config=config,
        model=loaded.name,
        source=replay.source.name,
        point=replay.source.point,
        classes=names,
        ids=replay.source.ids,
        codes=codes,
        donors=np.stack(donors),
        baseline=losses[0],
        swapped=tuple(found),
        contrasts=tuple(_contrasts(found, config)),
        failures=left_out(replay),
        retried=len(replay.retried),
        certificate=replay_certificate(replay),
    )


def _subspaces(modes: Modes, config: SwapConfig) -> list[Subset]:
    """The subspaces by name; `ta` is every text-aligned mode here."""
    found: list[Subset] = []
    for name in dict.fromkeys(name.strip() for name in config.subspaces):
        if name == "ta" and len(modes.ta):
            found.append(Subset(name, tuple(modes.ta.tolist())))
        else:
            found += subsets_of(modes, (name,), config.seed)[0]
    if not found:
        raise ValueError(f"subspaces: {', '.join(config.subspaces)} name no modes to swap")
    return found


def _means(
    store: ActivationStore, point: str, config: SwapConfig
) -> tuple[tuple[str, ...], NDArray[np.int64], Float]:
    """Class names, class of every sample of the store (-1 for none) and the classes' mean rows [classes, d].

    From all complete samples of the store, as published, however many are replayed.
    """
    complete = store.complete_samples()
    column = store.labels[config.by]
    values = [value if done else None for value, done in zip(column.values, complete, strict=True)]
    # names that occur once each are a text to a store, and a class each here
    classes = classes_of(column.kind, values) if column.kind == "number" else categories(values)
    members = np.flatnonzero(classes.codes >= 0)
    found, codes = np.unique(classes.codes[members], return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"label {config.by!r} has {len(found)} classes among the samples; a swap needs two")
    every = np.full(len(complete), -1, dtype=np.int64)
    every[members] = codes
    means = class_means(mean_rows(store, point, members.tolist()), every[members])
    return tuple(classes.names[code] for code in found), every, means


def _swapped(
    subspace: Subset,
    modes: Modes,
    baseline: Float,
    losses: Float,
    kl: Float,
    squared: Float,
    config: SwapConfig,
) -> Swapped:
    """Statistics of one subspace; arrays are [donors, n] and averaged over the donors first."""
    index = np.array(subspace.indices)
    per_move = kl / np.maximum(squared, 1e-10)
    interval: dict[str, Any] = {"draws": config.draws, "level": config.level, "seed": config.seed}
    return Swapped(
        name=subspace.name if subspace.seed is None else f"{subspace.name} #{subspace.seed}",
        modes=subspace.indices,
        variance=modes.share(index),
        loss=losses.mean(axis=0),
        kl=kl.mean(axis=0),
        squared=squared.mean(axis=0),
        kl_per_move=per_move.mean(axis=0),
        change=paired(baseline, losses.mean(axis=0), **interval),
        mean_kl=mean_interval(kl.mean(axis=0), **interval),
        median_kl=float(np.median(kl.mean(axis=0))),
        mean_norm=float(np.sqrt(squared).mean()),
        mean_kl_per_move=mean_interval(per_move.mean(axis=0), **interval),
    )


def _contrasts(found: Sequence[Swapped], config: SwapConfig) -> list[tuple[str, str, Estimate, Estimate]]:
    """Ratio of every later subspace to the first: of mean KL, and of mean KL per squared perturbation norm."""
    out = []
    first = found[0]
    for other in found[1:]:
        ratios = []
        for name in ("kl", "kl_per_move"):
            a, b = getattr(first, name), getattr(other, name)
            if not a.mean() > 0:
                ratios.append(Estimate(float("nan")))
                continue
            ends = bootstrap(
                lambda index, a=a, b=b: b[index].mean(axis=1) / a[index].mean(axis=1),  # type: ignore[misc]
                len(a),
                draws=config.draws,
                level=config.level,
                seed=config.seed,
            )
            ratios.append(Estimate(float(b.mean() / a.mean()), float(ends[0]), float(ends[1])))
        out.append((first.name, other.name, ratios[0], ratios[1]))
    return out
