"""`ablate`: what the decoder loses with modes projected out of a hook point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.align import Modes
from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate, path_facts
from modegap.engine.cluster import Replicas

from .config import AblateConfig
from .measure import Measured, Progress, as_store, by_model, by_replay
from .outcome import AblationResult, Condition, Draw
from .statistics import paired
from .subsets import Subset, subsets_of, swept
from .sweep import Sweep, sweep_of

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset, Sample
    from modegap.engine.models import LoadedModel
    from modegap.stores import ActivationStore

Float = NDArray[np.float64]


def ablate(
    loaded: LoadedModel | Replicas,
    data: ActivationStore | str | Path | Dataset | Sequence[Sample],
    modes: Modes | str | Path,
    subsets: Sequence[str] | None = None,
    config: AblateConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> AblationResult:
    """Cross-entropy of the target tokens with subsets of modes projected out, against none.

    z' = z - U U'z at every position of the hook point, on z itself as published (not on z minus its mean).

    From a store with token rows of the adapter's output, the decoder alone is replayed: all conditions of a sample
    share its rows and run in the same batches, at the adapter's output or inside the decoder. From a data set of
    media the whole model runs, one pass over the samples a condition, which reaches every hook point.

    Args:
        loaded: the model the modes come from, or its replicas on a cluster (for a store).
        data: a store (or its path), or samples with target texts.
        modes: from `align`, or the file that `Modes.save` wrote.
        subsets: which modes to remove (see `AblateConfig`).
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)`.

    Raises:
        ValueError: unknown options or subsets, no subset with modes, modes of another width, or options of the
            replay with a data set.
        EngineError: an unknown hook point, one that replay cannot reach, a store that cannot be replayed, or a
            sample that cannot be scored.
        StoreError: a path without a store.
    """
    given = {} if subsets is None else {"subsets": tuple(subsets)}
    config = with_options(config or AblateConfig(), {**given, **options})
    file, modes = modes, modes if isinstance(modes, Modes) else Modes.load(modes)
    point = config.point or modes.point
    wanted, left_out = subsets_of(modes, tuple(config.subsets), config.seed)
    alone = swept(modes, tuple(config.subsets))
    store = as_store(data)
    if store is None and len(data) < 2:  # type: ignore[arg-type]
        raise ValueError(f"data: got {len(data)} samples, a paired comparison needs at least 2")  # type: ignore[arg-type]
    removed = [None, *(s.indices for s in wanted), *((int(k),) for k in alone)]
    if store is not None:
        found = by_replay(loaded, store, point, modes, file, removed, config, progress)
    elif isinstance(loaded, Replicas):
        raise ValueError("data: a cluster replays stores; give a store with token rows of adapter_output")
    else:
        found = by_model(loaded, data, point, modes, removed, config, progress)  # type: ignore[arg-type]
    if len(found.ids) < 2:
        raise ValueError(f"data: got {len(found.ids)} samples, a paired comparison needs at least 2")
    return _result(modes, config, point, wanted, left_out, alone, found)


def _result(
    modes: Modes,
    config: AblateConfig,
    point: str,
    wanted: Sequence[Subset],
    left_out: tuple[str, ...],
    alone: Sequence[int],
    found: Measured,
) -> AblationResult:
    baseline = found.losses[0]
    pairs = zip(wanted, found.losses[1 : 1 + len(wanted)], strict=True)
    conditions = []
    for name, members in groupby(pairs, key=lambda pair: pair[0].name):
        draws = [_draw(modes, config, subset, baseline, loss) for subset, loss in members]
        mean = np.mean([draw.loss for draw in draws], axis=0)
        conditions.append(Condition(name, tuple(draws), _compare(config, baseline, mean)))
    sweep: Sweep | None = None
    if len(alone):
        sweep = sweep_of(modes, alone, baseline, found.losses[1 + len(wanted) :], config)
    return AblationResult(
        config=config,
        model=found.model,
        point=point,
        ids=found.ids,
        baseline=baseline,
        conditions=tuple(conditions),
        left_out=left_out,
        sweep=sweep,
        failures=found.failures,
        retried=found.retried,
        certificate=_certificate(modes, found),
    )


def _certificate(modes: Modes, found: Measured) -> Certificate:
    """That of the modes, with the path that projected them out and the store that was replayed."""
    paths = {**modes.certificate.kernel_paths}
    if found.path is not None:
        paths.update(path_facts([found.path]))
    hashes = {**modes.certificate.store_hashes, **dict(found.store_hashes)}
    return replace(modes.certificate, kernel_paths=paths, store_hashes=hashes)


def _draw(modes: Modes, config: AblateConfig, subset: Subset, baseline: Float, loss: Float) -> Draw:
    index = np.array(subset.indices)
    total = float(modes.eigenvalues[index].sum() / modes.eigenvalues.sum())
    return Draw(subset, modes.share(index), total, loss, _compare(config, baseline, loss))


def _compare(config: AblateConfig, baseline: Float, loss: Float) -> Any:
    return paired(baseline, loss, draws=config.draws, level=config.level, seed=config.seed)
