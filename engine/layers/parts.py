"""What a pass captures, until all passes are done: a part of the store, or of the statistics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modegap.engine.capture.capturer import Block
from modegap.engine.capture.collect import Collector
from modegap.engine.capture.job import Job, Shape
from modegap.engine.capture.lengths import StreamRule
from modegap.engine.capture.sink import Sink, StoreSink
from modegap.engine.capture.statistics import MomentsSink, PointMoments, classes
from modegap.engine.capture.transfer import Shuttle
from modegap.engine.models.points import HookPoint
from modegap.engine.moments import MomentsResult, MomentsStore, save_moments

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, StorePlan

# rows read at a time when parts become a store
_BLOCK_ROWS = 2048


class Part(Protocol):
    """Takes the batches of one pass."""

    collector: Collector
    shuttle: Shuttle

    def sink(self, shapes: Mapping[str, Shape]) -> Sink:
        """Where batches go; made when the first one has shown the shapes."""
        ...

    def close(self) -> None:
        """Everything was taken: makes it last."""
        ...

    def abandon(self, error: BaseException) -> None:
        """The pass failed."""
        ...


class RowsPart:
    """Rows in a store of their own, without labels."""

    def __init__(self, job: Job, points: Sequence[HookPoint], folder: Path) -> None:
        """Makes nothing yet."""
        rows = job.config.stored
        assert rows is not None
        self.collector = Collector(rows, half=job.config.store_dtype == "float16", pool=job.config.pool)
        self.shuttle = Shuttle()
        self._job, self._points, self._folder, self._rows = job, points, folder, rows
        self._stack = ExitStack()
        self._sink: StoreSink | None = None

    def sink(self, shapes: Mapping[str, Shape]) -> StoreSink:
        """The thread that writes; what an earlier try has stored is not put again."""
        from modegap.stores import ActivationStore

        if self._sink is None:
            plan = part_plan(self._job, self._points, shapes)
            store = ActivationStore.create(self._folder, plan, exist_ok=True)
            writer = self._stack.enter_context(store.writer())
            todo = [int(index) for index in writer.todo]
            self._sink = self._stack.enter_context(StoreSink(writer, todo, self.collector))
        return self._sink

    def close(self) -> None:
        """Waits for the writes."""
        self._stack.close()

    def abandon(self, error: BaseException) -> None:
        """Ends the thread; what it has committed stays."""
        self._stack.__exit__(type(error), error, error.__traceback__)


class MomentsPart:
    """Statistics in a folder of their own."""

    def __init__(self, job: Job, points: Sequence[HookPoint], folder: Path) -> None:
        """Makes nothing yet."""
        self._half = job.config.store_dtype == "float16"
        self.collector = Collector("both", half=self._half, pool=job.config.pool)
        self.shuttle = Shuttle(fields=("top",))
        self._job, self._points, self._folder = job, points, folder
        self._sink: MomentsSink | None = None
        self._moments: PointMoments | None = None
        self._plan: StorePlan | None = None
        self._categories: list[str] = []

    def sink(self, shapes: Mapping[str, Shape]) -> MomentsSink:
        """The accumulators."""
        if self._sink is None:
            config = self._job.config
            self._plan = part_plan(self._job, self._points, shapes, labels=True)
            codes, self._categories = classes(self._plan, config.by)
            names = [point.name for point in self._points]
            self._moments = PointMoments(names, config.stats_mode, codes, len(self._categories))
            self._sink = MomentsSink(self._moments, self._half)
        return self._sink

    def close(self) -> None:
        """Saves the results."""
        assert self._sink is not None
        assert self._moments is not None
        assert self._plan is not None
        self._sink.drain()
        shutil.rmtree(self._folder, ignore_errors=True)
        save_moments(
            self._folder,
            self._moments.finalize(),
            plan=self._plan.describe(),
            plan_hash="part",
            provenance={},
            samples=self._plan.sample_ids,
            by=self._job.config.by,
            categories=self._categories,
        )

    def abandon(self, error: BaseException) -> None:
        """Nothing was saved."""


def part_plan(
    job: Job, points: Sequence[HookPoint], shapes: Mapping[str, Shape], *, labels: bool = False
) -> StorePlan:
    """The plan of some of a job's points."""
    from dataclasses import replace

    unknown: dict[str, Shape] = dict.fromkeys((point.name for point in job.points), (1, None))
    whole = job.plan({**unknown, **shapes}, {}, job.config.stored or "both")
    kept = {point.name: whole.points[point.name] for point in points}
    return replace(whole, points=kept, labels=whole.labels if labels else {}, provenance={"part": True})


def shapes_of(blocks: Mapping[str, Block]) -> dict[str, Shape]:
    """Width and row rule at each point of a batch."""
    return {name: (int(block.x.shape[-1]), block.rule) for name, block in blocks.items()}


def shape_json(shape: Shape) -> list[Any]:
    """A shape as JSON."""
    width, rule = shape
    return [width] if rule is None else [width, rule.unit, rule.factor.numerator, rule.factor.denominator]


def shape_from(entry: Sequence[Any]) -> Shape:
    """What `shape_json` wrote."""
    if len(entry) == 1:
        return int(entry[0]), None
    return int(entry[0]), StreamRule(entry[1], Fraction(int(entry[2]), int(entry[3])))


def assemble(
    store: ActivationStore, parts: Mapping[str, ActivationStore], tick: Callable[[int], None]
) -> None:
    """Copies the rows of all parts into the store, sample by sample, from where it stands.

    Args:
        store: open for writing.
        parts: the part that holds each point.
        tick: called with the number of samples done.
    """
    from modegap.stores import SampleRows

    with store.writer() as writer:
        todo = [int(index) for index in writer.todo]
        total = len(store.samples)
        at = 0
        while at < len(todo):
            run = _run_of(todo, at, parts)
            rows = {
                name: _rows_of(part, name, todo[at], todo[at + run - 1] + 1) for name, part in parts.items()
            }
            columns = _columns(store, parts, todo[at], todo[at + run - 1] + 1)
            for offset in range(run):
                given = {name: SampleRows(*found[offset]) for name, found in rows.items()}
                writer.put(todo[at + offset], given, {s: found[offset] for s, found in columns.items()})
            at += run
            tick(total - len(todo) + at)


def _run_of(todo: Sequence[int], at: int, parts: Mapping[str, ActivationStore]) -> int:
    """How many samples from `at` on are read together: successive ones of about a block of rows."""
    run, rows = 1, 0
    longest = max(parts.values(), key=lambda part: max(info.n_rows for info in part.points.values()))
    name = max(longest.points, key=lambda point: longest.points[point].n_rows)
    array = longest.rows(name) if longest.points[name].rows != "pooled" else None
    while at + run < len(todo) and todo[at + run] == todo[at] + run and run < _BLOCK_ROWS:
        if array is not None:
            start, stop = array.sample_range(todo[at + run])
            rows += stop - start
            if rows > _BLOCK_ROWS:
                break
        run += 1
    return run


def _rows_of(part: ActivationStore, point: str, first: int, last: int) -> list[tuple[Any, Any]]:
    info = part.points[point]
    tokens: list[Any] = [None] * (last - first)
    pooled: list[Any] = [None] * (last - first)
    if info.rows != "pooled":
        array = part.rows(point)
        ranges = [array.sample_range(index) for index in range(first, last)]
        block = array.read(ranges[0][0], ranges[-1][1])
        tokens = [block[start - ranges[0][0] : stop - ranges[0][0]] for start, stop in ranges]
    if info.rows != "tokens":
        pooled = list(part.rows(point, "pooled").read(first, last))
    return list(zip(tokens, pooled, strict=True))


def _columns(
    store: ActivationStore, parts: Mapping[str, ActivationStore], first: int, last: int
) -> dict[str, list[tuple[Any, Any]]]:
    found: dict[str, list[tuple[Any, Any]]] = {}
    for name, part in parts.items():
        stream = store.points[name].stream
        if stream is None or stream in found:
            continue
        array = part.rows(name)
        ranges = [array.sample_range(index) for index in range(first, last)]
        base, end = ranges[0][0], ranges[-1][1]
        ids, modality = array.token_ids(base, end), array.modality(base, end)
        assert ids is not None
        assert modality is not None
        found[stream] = [(ids[a - base : b - base], modality[a - base : b - base]) for a, b in ranges]
    return found


def collected(parts: Mapping[str, MomentsStore], by: str | None) -> dict[str, MomentsResult]:
    """The results of all parts by `<point>.<kind>`."""
    found: dict[str, MomentsResult] = {}
    for name, part in parts.items():
        for kind in ("tokens", "pooled"):
            found[f"{name}.{kind}"] = part.moments(name, kind)
            if by is not None:
                found[f"{name}.{kind}.by"] = part.class_moments(name, kind)[0]
    return found
