"""`distance`: how far the modal law is from the text law at every hook point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modegap.analyses.align.config import AlignConfig
from modegap.analyses.align.inputs import Inputs, resolve
from modegap.analyses.probe import pipeline_order
from modegap.analyses.result import with_options
from modegap.engine.certificate import Certificate
from modegap.engine.cluster import joined
from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, as_store
from modegap.stores.errors import StoreError

from .classes import rows_of_samples, shared_classes
from .config import DistanceConfig
from .outcome import ClassDistance, DistanceResult, PairDistance
from .pair import Comparison
from .transport import w1_bootstrap

if TYPE_CHECKING:
    import torch

    from modegap.engine.cluster import Cluster

Progress = Callable[[int, int, int], None]

_CLASS_ROWS = 10


def distance(
    store: ActivationStore | str | Path,
    text: ActivationStore | str | Path,
    config: DistanceConfig | None = None,
    *,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    cluster: str | Cluster | None = None,
    **options: Any,
) -> DistanceResult:
    """Wasserstein distances, MMD^2 and CKA between modal and text rows, streamed from two stores.

    Each hook point takes two passes over its rows (more where the projections exceed `config.memory`): one for
    the moments and the sampled rows, one for the projections of all rows. What cannot be computed at one
    hook point leaves a message there, and the rest goes on.

    Args:
        store: modal store, or its path.
        text: text store of the same decoder, or its path.
        config: options; `options` are fields of it given by name.
        device: where rows are reduced; None is the host.
        progress: called after every buffer of rows, as in `reduce`.
        cluster: workers that share the passes, as in `reduce`.

    Raises:
        ValueError: an unknown option or one out of its range.
        StoreError: an unknown hook point or label, or no hook point with a counterpart.
    """
    config = with_options(config or DistanceConfig(), options)
    with joined(cluster) as workers:
        return _distance(as_store(store), as_store(text), config, device, progress, workers)


def _distance(
    modal: ActivationStore,
    text: ActivationStore,
    config: DistanceConfig,
    device: str | torch.device | None,
    progress: Progress | None,
    cluster: Cluster | None,
) -> DistanceResult:
    pairs: list[PairDistance] = []
    classes: list[ClassDistance] = []
    names = None if config.label is None else shared_classes(modal, text, config.label, config.max_classes)
    certificates: tuple[Certificate, Certificate] | None = None
    for point in _points(modal, text, config):
        align = AlignConfig(point=point, text_point=config.text_point, rows=config.rows, law=config.law)
        try:
            inputs = resolve(modal, text, align)
        except (ValueError, StoreError) as problem:
            pairs.append(PairDistance(point, config.text_point or "", messages=(str(problem),)))
            continue
        run = Comparison(inputs, config, device, progress, cluster)
        try:
            found = run.measure(_class_rows(inputs, config, names))
        except (EngineError, ValueError) as problem:
            pairs.append(PairDistance(point, inputs.text_point, inputs.kind, messages=(str(problem),)))
            continue
        pairs.append(found)
        certificates = certificates or run.certificates
        classes += _classes(run, config, names or [])
    if certificates is None:
        said = "; ".join(f"{pair.point}: {pair.messages[0]}" for pair in pairs)
        raise StoreError(f"no hook point could be compared: {said}")
    hashes = {"modal": modal.content_hash(), "text": text.content_hash()}
    ours, theirs = (replace(certificate, store_hashes=hashes) for certificate in certificates)
    return DistanceResult(
        replace(config, points=tuple(pair.point for pair in pairs)),
        tuple(pairs),
        tuple(classes),
        ours,
        theirs,
    )


def _points(modal: ActivationStore, text: ActivationStore, config: DistanceConfig) -> list[str]:
    if config.points is not None:
        return sorted(dict.fromkeys(config.points), key=pipeline_order)
    shared = [
        point
        for point in modal.points
        if config.text_point is not None
        or point in text.points
        or (point == "adapter_output" and "text_embedding" in text.points)
    ]
    if not shared:
        raise StoreError(
            f"the stores share no hook point: {', '.join(modal.points)} here, {', '.join(text.points)} in the text "
            "store; extract the same ones, or name points and text_point"
        )
    return sorted(shared, key=pipeline_order)


def _class_rows(
    inputs: Inputs, config: DistanceConfig, names: list[str] | None
) -> dict[str, tuple[Any, Any]]:
    label = config.label
    if names is None or label is None:
        return {}
    rng = np.random.default_rng([config.seed, 3])

    def rows(store: ActivationStore, point: str, name: str) -> Any:
        values = store.labels[label].values
        chosen = np.array([value is not None and str(value) == name for value in values])
        return rows_of_samples(store, point, inputs.kind, chosen, config.samples, rng)

    modal, text = inputs.modal, inputs.text
    return {name: (rows(modal, inputs.point, name), rows(text, inputs.text_point, name)) for name in names}


def _classes(run: Comparison, config: DistanceConfig, names: list[str]) -> list[ClassDistance]:
    out = []
    for name in names:
        x, y = run.class_values(name)
        few = min(len(x), len(y)) < _CLASS_ROWS
        if few:
            message = (
                f"{len(x)} modal and {len(y)} text rows, a distance needs {_CLASS_ROWS} a side: extract more "
                "samples of it"
            )
            out.append(ClassDistance(run.inputs.point, name, len(x), len(y), None, message))
            continue
        found = w1_bootstrap(
            x, y, draws=config.bootstrap, level=config.level, seed=config.seed, jobs=config.n_jobs
        )
        out.append(ClassDistance(run.inputs.point, name, len(x), len(y), found))
    return out
