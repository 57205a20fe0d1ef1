"""`extract` and `extract_moments` for models larger than the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from modegap.engine.capture.config import ExtractConfig
from modegap.engine.capture.job import Job, Progress, Shape, stored_provenance
from modegap.engine.capture.statistics import classes, refuse_other
from modegap.engine.datasets import Dataset
from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.moments import MomentsStore, save_moments

from .checkpoint import CheckpointFiles
from .decoder import LayerRunner
from .feed import LayerFeed
from .parts import assemble, collected, shape_from
from .passes import Passes, pass_of
from .skeleton import empty, folder_of, skeleton
from .working import WorkingStore

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, StorePlan

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Streamed:
    """All passes are done.

    Attributes:
        job: the job.
        working: holds the parts.
        shapes: width and row rule of every point.
        parity: largest differences between samples in a batch and alone, by point.
    """

    job: Job
    working: WorkingStore
    shapes: dict[str, Shape]
    parity: dict[str, Any]

    def part(self, point: str, opened: Callable[[Path], Made]) -> Made:
        """The part that holds a point."""
        (found,) = [p for p in self.job.points if p.name == point]
        return opened(self.working.folder / "parts" / str(pass_of(self.job, found)))


def extract_by_layer(
    config: ExtractConfig,
    *,
    model: LoadedModel | None,
    data: Dataset,
    progress: Progress | None = None,
) -> ActivationStore:
    """`extract` with `stream_layers`: decoder layers pass one at a time through one device.

    The whole data set runs through everything before the layers, then through layer 0, then 1, and so on to
    the last one that a hook point needs. Hidden states wait in a working store in the model's own dtype, so
    that they are those of the whole model; each layer's weights are read once. A killed run goes on at the
    layer it was in. Two samples of the first batch also run alone; the largest difference at each point is in
    the provenance under `parity`.

    Raises:
        As `extract`; EngineError for a checkpoint without safetensors files, or one whose layers cannot be
        told apart.
    """
    from modegap.stores import ActivationStore

    path = Path(config.store)
    if path.exists() and not config.resume:
        raise EngineError(f"{path} exists; choose another store, delete it, or resume it (resume=True)")
    stored = stored_provenance(path) if path.exists() else None
    if stored is not None and stored.get("config_hash") == _config_hash(config):
        store = ActivationStore.open(path)
        if store.n_complete == len(store.samples):
            _forget(config)
            return store
    done = _stream(config, model, data, progress, stored)
    job, rows = done.job, config.stored
    assert rows is not None
    plan = job.plan(done.shapes, (stored or {}).get("parity") or done.parity, rows)
    store = ActivationStore.create(path, plan, exist_ok=True)
    job.ledger.attach()
    if store.n_complete < job.count:
        parts = {point.name: done.part(point.name, ActivationStore.open) for point in job.points}
        assemble(store, parts, lambda count: job.progress("store", count, job.count))
    done.working.remove()
    return ActivationStore.open(path)


def moments_by_layer(
    config: ExtractConfig,
    *,
    model: LoadedModel | None,
    data: Dataset,
    progress: Progress | None = None,
) -> MomentsStore:
    """`extract_moments` with `stream_layers`; see `extract_by_layer`.

    Raises:
        As `extract_by_layer`.
    """
    from modegap.stores.plan import plan_hash

    path = Path(config.store)
    finished = refuse_other(path, config.resume)
    if finished is not None:
        if finished.provenance.get("config_hash") != _config_hash(config):
            raise EngineError(f"{path} was made with other options; use the same, or choose another store")
        _forget(config)
        return finished
    done = _stream(config, model, data, progress, None)
    plan: StorePlan = done.job.plan(done.shapes, done.parity, "both")
    _, categories = classes(plan, config.by)
    parts = {point.name: done.part(point.name, MomentsStore.open) for point in done.job.points}
    store = save_moments(
        path,
        collected(parts, config.by),
        plan=plan.describe(),
        plan_hash=plan_hash(plan.describe(), plan.provenance),
        provenance=plan.provenance,
        samples=plan.sample_ids,
        by=config.by,
        categories=categories,
    )
    done.job.ledger.attach()
    done.working.remove()
    return store


def _stream(
    config: ExtractConfig,
    model: LoadedModel | None,
    data: Dataset,
    progress: Progress | None,
    stored: dict[str, Any] | None,
) -> Streamed:
    from modegap.engine.plan import check_streaming

    if model is not None:
        raise ValueError(
            "got a loaded model with stream_layers, which loads one layer at a time: give its id"
        )
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    with CheckpointFiles(folder_of(config.model, config.revision)) as files:
        loaded = empty(
            config.model,
            dtype=config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            points=config.module,
        )
        layers = skeleton(files, loaded, device)
        job = Job(loaded, data, config, progress)
        working = WorkingStore(_work(config), device)
        settled = working.noted("settled") or stored
        reserve = 2 * layer_bytes(loaded)
        job.prepare(settled, reserve)
        working.begin(_facts(job))
        working.note("settled", job.settled())
        last = max(pass_of(job, point) for point in job.points)
        if config.preflight:
            check_streaming(job, working.folder, reserve)
        passes = Passes(job, working, LayerRunner(loaded), last)
        passes.before()
        first = _next(working, last)
        with LayerFeed(files, loaded.model, layers, range(first, last + 1), device) as feed:
            for k in range(first, last + 1):
                passes.layer(k, feed)
    shapes: dict[str, Shape] = {}
    parity: dict[str, Any] = {}
    for number in range(-1, last + 1):
        noted = working.noted(f"pass-{number}")
        shapes |= {name: shape_from(entry) for name, entry in noted["shapes"].items()}
        parity |= noted["parity"]
    return Streamed(job, working, shapes, parity)


def layer_bytes(loaded: LoadedModel) -> int:
    """Bytes of the largest decoder layer's parameters."""
    assert loaded.structure is not None
    layers = loaded.model.get_submodule(loaded.structure.layers).children()
    return max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)


def _next(working: WorkingStore, last: int) -> int:
    """The layer to go on with."""
    k = 0
    while k <= last and working.noted(f"pass-{k}") is not None:
        k += 1
    return k


def _work(config: ExtractConfig) -> Path:
    """Where the hidden states between layers lie."""
    path = Path(config.store)
    return Path(config.work).expanduser() if config.work else path.with_name(f"{path.name}.work")


def _forget(config: ExtractConfig) -> None:
    """Removes what a run that was stopped at its very end has left."""
    working = WorkingStore(_work(config), torch.device("cpu"))
    empty_folder = working.folder.is_dir() and not any(working.folder.iterdir())
    if empty_folder or working.noted("facts") is not None:
        working.remove()


def _config_hash(config: ExtractConfig) -> str:
    from modegap.stores.origin import canonical_json, sha256

    return sha256(canonical_json(config.rows_config()))


def _facts(job: Job) -> dict[str, Any]:
    from modegap.stores.origin import canonical_json, sha256

    return {
        "format": "modegap-working/2",
        "model": job.loaded.name,
        "revision": job.loaded.revision,
        **job.weights(),
        "dtype": str(job.loaded.dtype),
        "config": job.config.rows_config(),
        "samples": sha256(canonical_json(list(job.data.ids[: job.count]))),
        "dataset": job.data.name,
    }
