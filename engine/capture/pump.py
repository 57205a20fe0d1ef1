"""The loop of a capture: batches from the feed, through the model, to the sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modegap.engine.models.collate import Inputs

from .capturer import Capturer
from .collect import Collector
from .feed import Feed, Item, Prepared
from .job import Job
from .rows import token_columns
from .sink import Sink
from .transfer import Flight, Shuttle


class Pump:
    """Runs batches of a job; nothing here waits for the device, so that it computes without a pause.

    A batch that does not fit into memory runs again in smaller parts, after what earlier batches still hold
    on the device is gone; no sample is left out.
    """

    def __init__(
        self, job: Job, capturer: Capturer, collector: Collector, shuttle: Shuttle, sink: Sink
    ) -> None:
        """What the batches pass through."""
        self._job, self._capturer, self._collector = job, capturer, collector
        self._shuttle, self._sink = shuttle, sink

    def run(self, batches: Sequence[Sequence[int]], tick: Callable[[], None]) -> None:
        """Captures every batch; `tick` is called after each.

        Raises:
            EngineError: a sample that alone does not fit, cannot be decoded, or has a value that is not
                finite.
            StoreError: as the sink.
        """
        job, backoff = self._job, self._job.backoff
        job.before_retry = self._sink.drain
        feed = Feed(
            job.loaded,
            job.data,
            batches,
            collate=job.collate,
            workers=job.config.workers,
            most=lambda: backoff.limit,
        )
        with feed:
            for prepared in feed:
                for _, flight in backoff.run(prepared.items, self._work(prepared)):
                    self._sink.take(flight)
                    tick()

    def _work(self, prepared: Prepared) -> Callable[[Sequence[Item]], Flight]:
        def work(part: Sequence[Item]) -> Flight:
            if len(part) == len(prepared.items):
                host, placed = prepared.host, prepared.receive(self._job.loaded)
            else:
                host = self._job.collate([sample for _, sample in part])
                placed = self._job.loaded.place(host)
            return self._capture([index for index, _ in part], host, placed)

        return work

    def _capture(self, indices: list[int], host: Inputs, placed: Inputs) -> Flight:
        blocks = self._capturer(placed, host)
        collected = self._collector(blocks, host.ids)
        columns = []
        if self._collector.rows != "pooled":
            lengths = {s: collected[point.name].lengths for s, point in self._job.streams.items()}
            columns = [
                {
                    stream: token_columns(self._job.loaded, host, at, stream, counts[at])
                    for stream, counts in lengths.items()
                }
                for at in range(len(indices))
            ]
        return self._shuttle.send(indices, host.ids, columns, collected)
