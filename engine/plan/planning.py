"""`plan`: bytes, memory, time and GPUs of a capture, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

from modegap.engine.capture.config import ExtractConfig
from modegap.engine.capture.job import Job, Progress, Shape, load_for
from modegap.engine.datasets import Dataset
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.loading import locate, published_here
from modegap.stores import StorePlan

from .batching import batch_bytes
from .capacity import disk_free, gpu_memories, host_memory
from .check import USABLE, Limit, disk_limit, gigabytes, job_bytes
from .memory import decoder_of, weight_bytes
from .probe import Probe, probe
from .shapes import estimated_shape

_RING = 3


@dataclass(frozen=True, slots=True)
class PointBytes:
    """What a hook point will take in the store.

    Attributes:
        point: name.
        width: features.
        rows: token rows; 0 where only pooled rows are wanted.
        token_bytes: of the token rows.
        pooled_bytes: of the pooled rows.
        exact: false where the rows of an encoder were estimated from its weights.
    """

    point: str
    width: int
    rows: int
    token_bytes: int
    pooled_bytes: int
    exact: bool


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """What a capture will need.

    Attributes:
        model, dataset: names.
        samples: captured samples.
        skipped: samples left out because their media cannot be decoded.
        tokens: positions that the decoder reads in all, padding not counted.
        longest: positions of the longest sample.
        batch: most samples and most padded tokens of a batch.
        points: bytes by hook point.
        store_bytes: of the store, chunk padding and token columns included.
        work_bytes: hidden states between layers on the disk; 0 unless layers are streamed.
        weight_bytes: of the whole model.
        layer_bytes: of the largest decoder layer.
        rest_bytes: of everything but the decoder's layers and head.
        batch_bytes: device memory of the largest batch, statistics included, weights not.
        host_bytes: host memory for rows on their way, weights not counted unless they are there.
        gpu_bytes: memory of one GPU; None where there is none and none was named.
        gpus: how many such GPUs the model and a batch need; None without `gpu_bytes`.
        streams_on_one: whether layer streaming fits one such GPU; None without `gpu_bytes`.
        probe: what was measured; None where it was skipped.
        seconds: predicted time; None without a probe.
        limits: everything that was checked.
        notes: what was assumed.
    """

    model: str
    dataset: str
    samples: int
    skipped: int
    tokens: int
    longest: int
    batch: tuple[int, int | None]
    points: tuple[PointBytes, ...]
    store_bytes: int
    work_bytes: int
    weight_bytes: int
    layer_bytes: int
    rest_bytes: int
    batch_bytes: int
    host_bytes: int
    gpu_bytes: int | None
    gpus: int | None
    streams_on_one: bool | None
    probe: Probe | None
    seconds: float | None
    limits: tuple[Limit, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing that was checked is short."""
        return all(limit.fits for limit in self.limits)

    def to_json(self) -> dict[str, Any]:
        """Every field, with `fits` and the refusals."""
        found = asdict(self)
        found["limits"] = [{**asdict(limit), "fits": limit.fits} for limit in self.limits]
        return {**found, "fits": self.fits, "refusals": [x.refusal() for x in self.limits if not x.fits]}


def plan(
    config: ExtractConfig,
    data: Dataset,
    *,
    model: LoadedModel | None = None,
    measure: bool = True,
    gpu_bytes: int | None = None,
    load: Callable[[ExtractConfig], LoadedModel] = load_for,
    progress: Progress | None = None,
) -> CapturePlan:
    """Plans the capture that `extract` would make of the same configuration; writes nothing.

    The data set is tokenised as a capture does it. Weights are counted on a model without any; where they
    fit, the model is loaded and a few batches are measured.

    Args:
        config: as for `extract`.
        data: the data set.
        model: a loaded model, instead of `config.model`.
        measure: load the model and time a few batches.
        gpu_bytes: memory of a GPU to plan for; that of the smallest one here unless given.
        load: loads the model that is measured.
        progress: as in `extract`.

    Raises:
        EngineError: as `extract`, but for lack of room, which the result says.
    """
    from modegap.engine.layers.skeleton import empty

    if model is None and published_here(locate(config.model, config.revision, config.trust_remote_code, {})):
        model = load(config)  # its shapes are only known with its weights
    loaded = model or empty(
        config.model,
        dtype=config.dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        points=config.module,
    )
    found = gpu_memories()
    if gpu_bytes is None and found:
        gpu_bytes = min(found)
    job = Job(loaded, data, config, progress)
    sizes = _sizes(loaded)
    free = None if gpu_bytes is None else int(USABLE * gpu_bytes) - _on_one(sizes, config, gpu_bytes)
    job.prepare(None, free=None if free is None else max(free, 0))
    shapes: dict[str, Shape] = {point.name: estimated_shape(loaded, point) for point in job.points}
    exact = {point.name for point in job.points if point.stream in ("llm", "text", "adapter")}
    limits = list(_memory_limits(job, sizes, gpu_bytes, len(found), config))
    notes, measured = [], None
    if measure and not config.stream_layers and all(limit.fits for limit in limits):
        if model is None:
            job = _again(job, load(config))
        shapes, _ = job.first_batch()
        exact = set(shapes)
        measured = probe(job)
    elif measure:
        notes.append("nothing was measured: the model would have to be in memory")
    if len(exact) < len(job.points):
        notes.append("rows of the encoder are estimated from the adapter's weights")
    rows = config.stored or "both"
    stored = job.plan(shapes, {}, rows)
    statistics = config.stored is None
    disk = Limit(f"disk of {job.path}", sizes.statistics(job), disk_free(job.path)) if statistics else None
    work = _work_bytes(job) if config.stream_layers else 0
    limits += [disk or disk_limit(job.path, stored, job.count)]
    if work:
        place = Path(config.work).expanduser() if config.work else job.path
        limits.append(
            Limit(f"disk of {place} (hidden states)", work, disk_free(place), ("work=<a larger disk>",))
        )
    store_bytes = sizes.statistics(job) if statistics else stored.nbytes()
    padded = sum(len(b) * int(job.measured.llm[list(b)].max()) for b in job.batches)
    return CapturePlan(
        model=loaded.name,
        dataset=job.data.name,
        samples=job.count,
        skipped=len(job.measured.skipped),
        tokens=int(job.measured.llm.sum()),
        longest=int(job.measured.llm.max()),
        batch=(job.batching.samples, job.batching.tokens),
        points=tuple(_points(stored, exact, statistics)),
        store_bytes=store_bytes,
        work_bytes=work,
        weight_bytes=sizes.total,
        layer_bytes=sizes.layer,
        rest_bytes=sizes.rest,
        batch_bytes=job_bytes(job),
        host_bytes=_host_bytes(job, stored),
        gpu_bytes=gpu_bytes,
        gpus=None if gpu_bytes is None else _gpus(sizes, job, gpu_bytes),
        streams_on_one=None if gpu_bytes is None else _streams(sizes, job, gpu_bytes),
        probe=measured,
        seconds=None if measured is None else measured.seconds(padded, store_bytes),
        limits=tuple(limits),
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes of a model's parts."""

    total: int
    layer: int
    rest: int

    def statistics(self, job: Job) -> int:
        """Bytes of the files of statistics: an fp64 covariance for token and for pooled rows of every point."""
        width = job.loaded.hidden_size or 1
        each = 8 * width * (width + 2)
        return len(job.points) * 2 * each * (2 if job.config.by is not None else 1)


def _sizes(loaded: LoadedModel) -> _Sizes:
    total = sum(weight_bytes(loaded.model).values())
    if loaded.structure is None:
        return _Sizes(total, 0, total)
    stack = loaded.model.get_submodule(loaded.structure.layers)
    layers = [sum(weight_bytes(layer).values()) for layer in stack.children()]
    return _Sizes(total, max(layers), total - sum(layers))


def _on_one(sizes: _Sizes, config: ExtractConfig, gpu_bytes: int) -> int:
    """Weights that one GPU holds beside a batch: all, its share, or two layers and what is not a layer."""
    if config.stream_layers:
        return sizes.rest + 2 * sizes.layer
    return min(sizes.total, int(0.8 * USABLE * gpu_bytes))


def _memory_limits(
    job: Job, sizes: _Sizes, gpu_bytes: int | None, count: int, config: ExtractConfig
) -> Sequence[Limit]:
    batch = job_bytes(job)
    on_host = Limit("host memory", sizes.total + batch, host_memory())
    if gpu_bytes is None:
        if config.stream_layers:
            need = sizes.rest + 2 * sizes.layer + batch
            return [Limit("host memory", need, host_memory(), ("fewer samples a batch (batch_size)",))]
        return [_with(on_host, "stream_layers", "a machine with a GPU (gpu_memory plans for one)")]
    usable = int(USABLE * gpu_bytes)
    if config.stream_layers:
        need = sizes.rest + 2 * sizes.layer + batch
        return [Limit("memory of one GPU", need, usable, _smaller(job, sizes.rest + 2 * sizes.layer, usable))]
    if config.device_map is None and count:
        return [_with(on_host, "device_map=auto", "stream_layers")]
    ways = []
    gpus = _gpus(sizes, job, gpu_bytes)
    if gpus > 1:
        ways.append(f"device_map=auto over {gpus} GPUs of {gigabytes(gpu_bytes)}")
    if _streams(sizes, job, gpu_bytes):
        ways.append("stream_layers on one")
    ways += _smaller(job, sizes.total, usable)
    have = usable * max(1, count)
    need = sizes.total + batch * max(1, count)
    name = f"memory of {count} GPUs" if count > 1 else "memory of one GPU"
    return [Limit(name, need, have, tuple(ways) if need > have else ())]


def _with(limit: Limit, *remedies: str) -> Limit:
    return limit if limit.fits else Limit(limit.what, limit.needed, limit.available, remedies)


def _smaller(job: Job, weights: int, usable: int) -> tuple[str, ...]:
    """A batch size that fits beside the weights, where one does."""
    size, longest = job.batching.samples, int(job.measured.llm.max())
    while size > 1:
        size //= 2
        if weights + batch_bytes(decoder_of(job.loaded), job.points, size * longest, longest) <= usable:
            return (f"batch_size={size}",)
    return ()


def _gpus(sizes: _Sizes, job: Job, gpu_bytes: int) -> int:
    usable = int(USABLE * gpu_bytes)
    batch = job_bytes(job)
    if sizes.total + batch <= usable:
        return 1
    room = max(usable - batch - sizes.layer, sizes.layer, 1)  # a layer is never split
    return max(2, ceil(sizes.total / room))


def _streams(sizes: _Sizes, job: Job, gpu_bytes: int) -> bool:
    return sizes.rest + 2 * sizes.layer + job_bytes(job) <= int(USABLE * gpu_bytes)


def _work_bytes(job: Job) -> int:
    decoder = decoder_of(job.loaded)
    return 2 * int(job.measured.llm.sum()) * decoder.width * decoder.itemsize


def _host_bytes(job: Job, stored: StorePlan) -> int:
    """Rows that wait for earlier samples, the ring of batches on their way, and chunks being filled."""
    lengths = job.measured.llm
    row = sum(info.width * (2 if info.dtype == "float16" else 4) for info in stored.points.values())
    window = max(int(lengths[w.start : w.stop].sum()) for w in job.windows)
    largest = max(len(b) * int(lengths[list(b)].max()) for b in job.batches)
    chunks = stored.chunk_bytes * (len(stored.points) + 4)
    return window * row + _RING * largest * row + chunks


def _points(stored: StorePlan, exact: set[str], statistics: bool) -> list[PointBytes]:
    found = []
    for name, info in stored.infos().items():
        itemsize = 2 if info.dtype == "float16" else 4
        token = 0 if statistics else info.n_rows * info.width * itemsize
        pooled = 0 if statistics or info.rows == "tokens" else len(stored.sample_ids) * info.width * itemsize
        found.append(PointBytes(name, info.width, info.n_rows, token, pooled, name in exact))
    return found


def _again(job: Job, loaded: LoadedModel) -> Job:
    """The same job with a model that has its weights."""
    made = Job(loaded, job.data, job.config, job.progress)
    made.measured, made.batching, made.windows, made.count = (
        job.measured,
        job.batching,
        job.windows,
        job.count,
    )
    made.data = job.data
    return made


def check_weights(config: ExtractConfig) -> None:
    """Raises EngineError for a model that the memory it is asked to be loaded into cannot hold.

    Nothing is checked where the model cannot be built without weights, or no GPU is asked for by name.
    """
    from modegap.engine.errors import EngineError
    from modegap.engine.layers.skeleton import empty

    from .check import refuse

    try:
        loaded = empty(
            config.model,
            dtype=config.dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
    except EngineError:
        return
    total = sum(weight_bytes(loaded.model).values())
    found = gpu_memories()
    if config.device_map is None or not found:
        refuse(
            [
                _with(
                    Limit("host memory for the weights", total, host_memory()),
                    "stream_layers",
                    "device_map=auto",
                )
            ]
        )
        return
    spread = config.device_map in ("auto", "balanced", "balanced_low_0", "sequential")
    have = int(USABLE * (sum(found) if spread else min(found)))
    need = max(2, ceil(total / (USABLE * min(found))))
    ways = ("stream_layers",) if spread else (f"device_map=auto over {need} GPUs", "stream_layers")
    what = f"memory of {len(found)} GPUs" if spread else "memory of one GPU"
    refuse([_with(Limit(f"{what} for the weights", total, have), *ways)])
