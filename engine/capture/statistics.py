"""`extract_moments`: hidden states reduced while they are on the device; no row is stored."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.checkpoint import Checkpoint
from modegap.engine.datasets import Dataset, dataset
from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.moments import ClassMoments, Moments, MomentsResult
from modegap.engine.moments.saved import MomentsStore, has_moments, save_moments
from modegap.stores.durable import replaced
from modegap.stores.values import FEWEST_BITS, exponent_for, least_ordinary, suits

from .capturer import Capturer
from .collect import FP16_MAX, Collected, Collector
from .config import ExtractConfig, StatsMode
from .job import Job, Progress, load_for
from .pump import Pump
from .rows import check_landed, largest
from .transfer import Flight, Shuttle

if TYPE_CHECKING:
    from modegap.stores import LabelColumn, StorePlan

_cuda: Any = torch.cuda  # its stubs leave streams untyped
CHECKPOINT_SECONDS = 300.0
_POOLED_BLOCK = 2048


class PointMoments:
    """Moments of the token and the pooled rows of every point; a reduction over whole batches.

    Rows are rounded to the dtype in which a store would hold them, so that the statistics are those of the
    stored rows.

    Args:
        points: names.
        mode: arithmetic of the covariances.
        codes: class of each sample, negative for none; no class means unless given.
        n_classes: how many classes.
    """

    def __init__(
        self,
        points: Sequence[str],
        mode: StatsMode,
        codes: Sequence[int] | None = None,
        n_classes: int = 0,
    ) -> None:
        """Nothing seen."""
        self._options = (tuple(points), mode, codes, n_classes)
        self.parts: dict[str, Moments] = {}
        for point in points:
            for kind, block in (("tokens", None), ("pooled", _POOLED_BLOCK)):
                self.parts[f"{point}.{kind}"] = Moments(mode, block_rows=block)
                if codes is not None:
                    part = ClassMoments(list(codes), n_classes, mode, block_rows=block)
                    self.parts[f"{point}.{kind}.by"] = part

    def fresh(self) -> Self:
        """An identity with the same options."""
        return type(self)(*self._options)

    def update(self, batch: Mapping[str, ActivationBatch]) -> None:
        """Adds rows by `<point>.<kind>`; those of other points may come in other calls."""
        for name, part in self.parts.items():
            rows = batch.get(name.removesuffix(".by"))
            if rows is not None:
                part.update(rows)

    def merge(self, other: Self) -> Self:
        """Adds what another one has seen."""
        for name, part in self.parts.items():
            part.merge(other.parts[name])
        return self

    def finalize(self) -> dict[str, MomentsResult]:
        """The results by `<point>.<kind>`."""
        return {name: part.finalize() for name, part in self.parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything seen."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


class MomentsSink:
    """Adds batches to the moments, each after the next one was queued, on a stream beside the model's.

    Attributes:
        taken: samples taken so far.
        done: samples added so far.
    """

    def __init__(self, moments: PointMoments, half: bool, start: int = 0) -> None:
        """Adds to `moments`, which has seen `start` samples, what a store in fp16 (`half`) or fp32 holds."""
        self.taken = self.done = start
        self._moments, self._half = moments, half
        self._held: deque[Flight] = deque()
        self._streams: dict[torch.device, Any] = {}

    def take(self, flight: Flight) -> None:
        """Keeps a batch and adds the one before.

        Raises:
            EngineError: a value of that one is not finite.
        """
        self._held.append(flight)
        self.taken += len(flight.indices)
        while len(self._held) > 1:
            self._add(self._held.popleft())

    def drain(self) -> None:
        """Adds everything taken so far."""
        while self._held:
            self._add(self._held.popleft())
        for device, side in self._streams.items():
            _cuda.current_stream(device).wait_stream(side)

    def _add(self, flight: Flight) -> None:
        try:
            landed = flight.land()  # the kernels that made the rows have ended with it
            for name, one in flight.on_device.items():
                top = largest(landed[name])
                check_landed(name, top, flight.ids, one.dtype)
                with self._beside(one):
                    self._moments.update(_batches(name, one, flight, top, self._half))
        finally:
            flight.release()
        self.done += len(flight.indices)

    def _beside(self, one: Collected) -> Any:
        device = one.top.device
        if device.type != "cuda":
            return nullcontext()
        if device not in self._streams:
            self._streams[device] = _cuda.Stream(device)
        for tensor in (one.tokens, one.wide, one.pooled):
            if tensor is not None:  # its memory must outlive what this stream still has to do with it
                tensor.record_stream(self._streams[device])
        return _cuda.stream(self._streams[device])


def _batches(
    point: str, one: Collected, flight: Flight, top: torch.Tensor, half: bool
) -> dict[str, ActivationBatch]:
    """The token and the pooled rows of a batch at a point; `top` is the largest magnitude of each sample [B].

    Raises:
        EngineError: one is so large that float16 would lose the digits of others.
    """
    assert one.tokens is not None
    assert one.pooled is not None
    numbers = torch.tensor(list(flight.indices), dtype=torch.int64)
    lengths = torch.tensor(one.lengths)
    given = {
        "tokens": (one.tokens, one.wide, numbers.repeat_interleave(lengths)),
        "pooled": (one.pooled, one.pooled, numbers),
    }
    found = {}
    for kind, (values, wide, sample) in given.items():
        x, scale = _stored(point, values, values if wide is None else wide, top, flight.ids, half)
        found[f"{point}.{kind}"] = ActivationBatch(x, 0, point, scale, sample)
    return found


def _stored(
    point: str, values: torch.Tensor, wide: torch.Tensor, top: torch.Tensor, ids: Sequence[str], half: bool
) -> tuple[torch.Tensor, float]:
    """The rows in the stored dtype and their power-of-two scale."""
    if not half:
        return wide.float(), 1.0
    peak = float(top.max())
    if peak <= FP16_MAX:
        return values.half(), 1.0
    exponent, wide = exponent_for(peak), wide.float()
    least = least_ordinary(wide.abs().amax(dim=1).cpu().numpy())
    if not suits(exponent, least):
        raise EngineError(
            f"{point}: the value {peak:.3g} in sample {ids[int(top.argmax())]!r} needs a scale that leaves other "
            f"rows of its float16 batch (one of them at most {least:.3g}) fewer than {FEWEST_BITS} bits; find out "
            f"where that value comes from and leave its sample out, or capture with --store_dtype float32"
        )
    scale = 2.0**exponent
    return (wide / scale).half(), scale


def extract_moments(
    config: ExtractConfig,
    *,
    model: LoadedModel | None = None,
    data: Dataset | None = None,
    progress: Progress | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> MomentsStore:
    """`extract` for `rows="stats-only"`: mean and covariance of every point, token and pooled rows.

    `align` and `cov` read the result like a store. The state is saved every `checkpoint_seconds`; a killed
    run goes on there.

    Raises:
        As `extract`; EngineError for a label (`by`) that the data set lacks.
    """
    from modegap.engine.plan import check_capture
    from modegap.stores.plan import plan_hash

    if config.stored is not None:
        raise ValueError(f"got rows={config.rows!r}, which are stored; use extract")
    data = dataset(config.dataset) if data is None else data
    if config.stream_layers:
        from modegap.engine.layers import moments_by_layer

        return moments_by_layer(config, model=model, data=data, progress=progress)
    job = Job(load_for(config) if model is None else model, data, config, progress)
    path = job.path
    finished = refuse_other(path, config.resume)
    begun = None if finished is not None else _begun(path)
    earlier = begun["provenance"] if begun else None if finished is None else finished.provenance
    job.prepare(earlier)
    shapes, parity = job.first_batch()
    said: dict[str, Any] = {name: gap.to_json() for name, gap in parity.items()}
    plan = job.plan(shapes, (earlier or {}).get("parity") or said, "both")
    described, digest = plan.describe(), plan_hash(plan.describe(), plan.provenance)
    if finished is not None or begun is not None:
        _same_plan(path, begun["plan_hash"] if begun else finished.plan_hash if finished else "", digest)
    if finished is not None:
        return finished
    if config.preflight:
        check_capture(job, plan)
    path.mkdir(parents=True, exist_ok=True)
    _begin(path, plan, digest)
    job.ledger.attach()
    codes, categories = classes(plan, config.by)
    moments = PointMoments([point.name for point in job.points], config.stats_mode, codes, len(categories))
    saved = Checkpoint(path / "checkpoint.safetensors", {"plan": digest}, checkpoint_seconds)
    start = saved.resume(moments, 0)
    run_moments(job, moments, saved, start)
    store = save_moments(
        path,
        moments.finalize(),
        plan=described,
        plan_hash=digest,
        provenance=plan.provenance,
        samples=plan.sample_ids,
        by=config.by,
        categories=categories,
    )
    saved.remove()
    (path / _BEGUN).unlink(missing_ok=True)
    return store


def run_moments(job: Job, moments: PointMoments, saved: Checkpoint, start: int) -> None:
    """Adds the windows from sample `start` on, saving the state at window ends when it is due."""
    half = job.config.store_dtype == "float16"
    sink = MomentsSink(moments, half, start)
    job.progress("capture", start, job.count)
    stops = {window.stop for window in job.windows}
    batches = [batch for window in job.windows if window.start >= start for batch in window.batches]

    def tick() -> None:
        job.progress("capture", sink.done, job.count)
        if sink.taken in stops and saved.due(time.monotonic()):
            sink.drain()
            saved.save(moments, sink.taken)

    with Capturer(job.loaded, job.points, fused=job.fused) as capturer:
        # only the magnitudes leave the device; the rows are added where they are
        collector = Collector("both", half, job.config.pool)
        Pump(job, capturer, collector, Shuttle(fields=("top",)), sink).run(batches, tick)
        sink.drain()
    job.progress("capture", job.count, job.count)


def classes(plan: StorePlan, by: str | None) -> tuple[list[int] | None, list[str]]:
    """Class of each sample under a label, and the class names.

    Raises:
        EngineError: no such label, or one of numbers.
    """
    if by is None:
        return None, []
    columns: dict[str, LabelColumn] = plan.columns()
    if by not in columns:
        raise EngineError(f"no label {by!r} in the data set (it has {', '.join(sorted(columns)) or 'none'})")
    column = columns[by]
    if column.kind == "number":
        names = sorted({str(value) for value in column.values if value is not None})
        return [-1 if value is None else names.index(str(value)) for value in column.values], names
    return column.codes().tolist(), list(column.categories)


def refuse_other(path: Path, resume: bool) -> MomentsStore | None:
    """Finished statistics at `path`, None where there are none.

    Raises:
        EngineError: something else is there, or it must not be resumed.
    """
    if not path.exists() or not any(path.iterdir()):
        return None
    if not resume:
        raise EngineError(f"{path} exists; choose another store, delete it, or resume it (resume=True)")
    if has_moments(path):
        return MomentsStore.open(path)
    if not (path / _BEGUN).exists():
        raise EngineError(f"{path} holds something else than statistics; choose another store")
    return None


def _same_plan(path: Path, theirs: str, ours: str) -> None:
    if theirs != ours:
        raise EngineError(
            f"{path} was made with another plan (model, data set or options); use the same to resume it, or "
            "choose another store"
        )


_BEGUN = "begun.json"


def _begin(path: Path, plan: StorePlan, digest: str) -> None:
    file = path / _BEGUN
    if not file.exists():
        with replaced(file) as aside:
            aside.write_text(json.dumps({"plan_hash": digest, "provenance": dict(plan.provenance)}), "utf-8")


def _begun(path: Path) -> dict[str, Any] | None:
    file = path / _BEGUN
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
