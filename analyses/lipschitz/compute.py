"""`lipschitz`: per-sample gradient norms of the decoder's log-likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.probe.labels import classes_of
from modegap.analyses.replayed.intervals import bootstrap
from modegap.analyses.replayed.opening import AnyReplay, Progress, left_out, open_replay, replay_certificate
from modegap.analyses.result import with_options
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError, unknown_name

from .config import LipschitzConfig
from .diameter import diameter, mean_rows
from .gradients import GradientPass, gradient_pass
from .outcome import Group, LipschitzResult, Spread

if TYPE_CHECKING:
    from modegap.engine.cluster import Replicas
    from modegap.engine.models import LoadedModel

Float = NDArray[np.float64]
_QUANTILES = (5, 25, 75, 95, 99)


def lipschitz(
    loaded: LoadedModel | Replicas,
    store: ActivationStore | str | Path,
    config: LipschitzConfig | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> LipschitzResult:
    """L_log of every sample: the norm over (positions, d) of grad_z log q(y | z, c), log q a mean over tokens.

    Samples that cannot be computed are listed with their reason; none is dropped without a record.

    Args:
        loaded: the model whose decoder is differentiated, or its replicas on a cluster.
        store: a store with token rows at the adapter's output (or `text_embedding`).
        config: options; `options` are fields of it given by name.
        progress: called as `progress(done, total)` after every batch.

    Raises:
        ValueError: unknown options, or fewer than two samples.
        EngineError: rows, targets or a model that cannot be replayed.
        StoreError: the store cannot be read, or an unknown label column.
    """
    config = with_options(config or LipschitzConfig(), options)
    store = as_store(store)
    check_labels(store, config)
    replay = open_replay(loaded, store, config, progress)
    return summarise(replay, store, gradient_pass(replay), config)


def check_labels(store: ActivationStore, config: LipschitzConfig) -> None:
    """Raises StoreError for a label column that the store does not have."""
    for label in config.by:
        if label not in store.labels:
            raise StoreError(unknown_name("label", label, store.labels))


def summarise(
    replay: AnyReplay, store: ActivationStore, found: GradientPass, config: LipschitzConfig
) -> LipschitzResult:
    """The result of a pass of gradients.

    Raises:
        ValueError: fewer than two samples could be computed.
    """
    if len(found.norms) < 2:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out(replay)[:3])
        raise ValueError(f"gradients of {len(found.norms)} samples only, statistics need two ({reasons})")
    samples = [item.index for item in replay.source.items]
    extent = diameter(
        mean_rows(store, replay.source.point, samples),
        pairs=config.pairs,
        seed=config.seed,
        paper=config.target == "paper",
    )
    return LipschitzResult(
        config=config,
        model=replay.loaded.name,
        source=replay.source.name,
        dataset=str(store.provenance.get("dataset") or ""),
        point=replay.source.point,
        ids=tuple(replay.source.items[number].id for number in found.members),
        norms=found.norms,
        shifts=found.mean_norms * found.lengths,
        log_q=found.log_q,
        lengths=found.lengths,
        overall=spread(found.norms, config),
        groups=tuple(_groups(replay, store, found, config)),
        diameter=extent,
        failures=left_out(replay),
        retried=len(replay.retried),
        certificate=replay_certificate(replay, found.paths),
    )


def spread(norms: Float, config: LipschitzConfig) -> Spread:
    """Mean, quantiles and maximum of norms [n], the mean and the 95th percentile with intervals."""
    low: list[float | None] = [None, None]
    high: list[float | None] = [None, None]
    if len(norms) > 1:
        ends = bootstrap(
            lambda index: np.stack(
                [norms[index].mean(axis=1), np.percentile(norms[index], 95, axis=1)], axis=1
            ),
            len(norms),
            draws=config.draws,
            level=config.level,
            seed=config.seed,
        )
        low, high = (side.tolist() for side in ends)
    p = {k: float(np.percentile(norms, k)) for k in _QUANTILES}
    return Spread(
        n=len(norms),
        mean=float(norms.mean()),
        mean_low=low[0],
        mean_high=high[0],
        std=float(norms.std()),
        median=float(np.median(norms)),
        p5=p[5],
        p25=p[25],
        p75=p[75],
        p95=p[95],
        p95_low=low[1],
        p95_high=high[1],
        p99=p[99],
        max=float(norms.max()),
    )


def _groups(
    replay: AnyReplay, store: ActivationStore, found: GradientPass, config: LipschitzConfig
) -> list[Group]:
    groups = []
    for label in config.by:
        column = store.labels[label]
        classes = classes_of(column.kind, [replay.source.labels[label][number] for number in found.members])
        for code, name in enumerate(classes.names):
            norms = found.norms[classes.codes == code]
            if len(norms):
                groups.append(Group(label, name, spread(norms, config)))
    return groups
