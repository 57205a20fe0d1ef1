"""`extract`: a data set through a model into a store, resumable at any sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.engine.datasets import Dataset, dataset
from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel

from .capturer import Capturer
from .collect import Collector
from .config import ExtractConfig
from .job import Job, Progress, load_for, stored_provenance
from .pump import Pump
from .sink import StoreSink
from .transfer import Shuttle

if TYPE_CHECKING:
    from modegap.engine.parallel import Ranks
    from modegap.stores import ActivationStore


def extract(
    config: ExtractConfig,
    *,
    model: LoadedModel | None = None,
    data: Dataset | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> ActivationStore:
    """Captures hidden states and returns the finished store.

    All texts are tokenised first, so that every row range is known; then samples run in batches of similar
    length and are stored in data set order. While the model computes a batch, the next one is decoded and the
    one before is copied and written. Killed at any moment and called again, it goes on at the first sample
    that is not stored and ends with the same bytes as an uninterrupted run on the same machine.
    Batches that do not fit into memory run again in smaller parts, noted in the store (`read_retries`); no
    sample is left out, but those whose media cannot be decoded where `skip_bad` asks for it (`read_skipped`,
    and `skipped` in the provenance).

    Before anything is stored, the first batch is compared with plain forwards of one sample each; the largest
    difference at each point is in the store's provenance under `parity`.

    Args:
        config: what to do.
        model: instead of loading `config.model`.
        data: instead of opening `config.dataset`.
        progress: called with ("tokenise" or "capture", samples done, samples in all).
        ranks: processes that `engine.parallel.launched` found: each tokenises and compares a first batch, the first
            one makes the store, and each captures a part of the samples and writes chunks of its own; all of
            them return the finished store.

    Raises:
        EngineError: anything wrong with model, data set, hook points or values, or a run that disk or memory
            cannot hold; one line with the remedy.
        StoreError: the store exists with another plan, or cannot be written.
        ValueError: the configuration asks for no rows; see `extract_moments`.
    """
    from modegap.engine.plan import check_capture
    from modegap.stores import ActivationStore

    rows = config.stored
    if rows is None:
        raise ValueError("got rows='stats-only', which stores no rows; use extract_moments")
    if "://" in config.store:
        raise EngineError(
            f"extraction writes to a local folder, got {config.store}: then put the store there with "
            f"`modegap import FOLDER {config.store}`"
        )
    data = dataset(config.dataset) if data is None else data
    if config.stream_layers:
        from modegap.engine.layers import extract_by_layer

        if ranks is not None:
            raise EngineError("stream_layers passes the layers through one device: run it without torchrun")
        return extract_by_layer(config, model=model, data=data, progress=progress)
    job = Job(load_for(config) if model is None else model, data, config, progress)
    stored = _prepared(job, ranks)
    shapes, parity = job.first_batch()
    # the differences of the run that began the store stay; they depend on the machine
    said: dict[str, Any] = {name: gap.to_json() for name, gap in parity.items()}
    path = job.path
    if ranks is not None and not ranks.first:
        ranks.barrier()  # the first one makes the store
        stored = stored_provenance(path)
    plan = job.plan(shapes, (stored or {}).get("parity") or said, rows)
    if config.preflight:
        check_capture(job, plan)
    store = ActivationStore.create(path, plan, exist_ok=True)
    parts = store.parts(1 if ranks is None else ranks.world)
    if ranks is not None and ranks.first:
        ranks.barrier()
    job.ledger.attach()
    collector = Collector(rows, half=config.store_dtype == "float16", pool=config.pool)
    rank = 0 if ranks is None else ranks.rank
    if rank < len(parts):
        _capture(job, store, parts[rank], collector)
    if ranks is not None:
        ranks.barrier()
    job.progress("capture", job.count, job.count)
    return ActivationStore.open(path)


def _prepared(job: Job, ranks: Ranks | None) -> dict[str, Any] | None:
    """Prepares the job; the provenance of the store that is resumed, if any, for who speaks for all.

    The first process settles the batches and which samples are left out. The others tokenise meanwhile instead of
    taking its counts over: data sets that differ then differ in the plan, which is refused. Only where samples may be
    left out they wait for its list, since what cannot be decoded may depend on the host.
    """
    path, config = job.path, job.config
    if ranks is not None:
        from modegap.engine.parallel.exchange import broadcast
    if ranks is not None and not ranks.first:
        if not config.skip_bad:
            job.measure(None)
        job.prepare(broadcast(None, 0, ranks))
        job.ledger.forget()  # the first process lists them
        return None
    if path.exists() and not config.resume:
        raise EngineError(f"{path} exists; choose another store, delete it, or resume it (resume=True)")
    stored = stored_provenance(path) if path.exists() else None
    job.prepare(stored)
    if ranks is not None:
        broadcast(job.settled(), 0, ranks)
    return stored


def _capture(job: Job, store: ActivationStore, part: tuple[int, int], collector: Collector) -> None:
    with Capturer(job.loaded, job.points, fused=job.fused) as capturer, store.writer(*part) as writer:
        todo = [int(index) for index in writer.todo]
        count = writer.stop - writer.first
        before = count - len(todo)
        due = set(todo)
        batches = [batch for window in job.windows for batch in window.batches if not due.isdisjoint(batch)]
        job.progress("capture", before, count)
        with StoreSink(writer, todo, collector) as sink:
            pump = Pump(job, capturer, collector, Shuttle(), sink)
            pump.run(batches, lambda: job.progress("capture", before + sink.done, count))
