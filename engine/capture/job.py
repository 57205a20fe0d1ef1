"""`Job`: what every kind of capture settles before its first batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.engine.datasets import Dataset, Sample, as_text, decoded
from modegap.engine.datasets.views import Subset
from modegap.engine.errors import EngineError
from modegap.engine.models.backoff import Backoff
from modegap.engine.models.collate import Inputs
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint
from modegap.engine.models.weights import weights_digest
from modegap.engine.replay.items import layout_of

from .capturer import Block, Capturer, check_finite
from .config import ExtractConfig, Rows
from .feed import Item, sampling_rate
from .ledger import Ledger
from .lengths import StreamRule
from .measure import Measured, labels_of, measure
from .parity import Parity, check_parity
from .schedule import Batching, Window, schedule

if TYPE_CHECKING:
    from modegap.stores import StorePlan

Progress = Callable[[str, int, int], None]
PARITY_SAMPLES = 4
# width and row rule of a point
Shape = tuple[int, StreamRule | None]


class Job:
    """A configured capture of a data set through a model.

    Attributes:
        points: what is captured.
        streams: the first point of each stream.
        data: the samples that are captured (of `prepare` on: without those that cannot be decoded).
        count: how many.
        measured: row counts; after `measure` or `prepare`.
        batching: batch size; after `prepare`.
        windows: the batches; after `prepare`.
        ledger: where retries and left-out samples are noted.
        backoff: the batch sizes that fit; one for the whole job.
        fused: whether the model runs with fused layers: as configured, or as a resumed run was begun.
        before_retry: called before a batch that did not fit runs again, to free what others hold.
    """

    measured: Measured
    batching: Batching
    windows: list[Window]

    def __init__(
        self, loaded: LoadedModel, data: Dataset, config: ExtractConfig, progress: Progress | None
    ) -> None:
        """Resolves hook points and checks that model and data set go together."""
        self.loaded, self.config = loaded, config
        self.progress: Progress = progress or (lambda phase, done, total: None)
        self.points = loaded.select(config.points)
        only_text = all(point.stream == "text" for point in self.points)
        textual = config.as_text or loaded.modality == "text" or only_text
        self.as_text = textual and data.modality != "text"
        self.data = as_text(data) if self.as_text else data
        self._check_modality()
        self.count = len(data) if config.limit is None else min(config.limit, len(data))
        self.streams: dict[str, HookPoint] = {}
        for point in self.points:
            self.streams.setdefault(point.stream, point)
        self._collating, self._tokenised = threading.Lock(), False
        self.fused, self._says_fused = config.fused, True
        self.ledger = Ledger(self.path)
        self.before_retry: Callable[[], None] = lambda: None
        self.backoff: Backoff[Item] = Backoff(lambda item: item[1].id, self._retried)

    def _retried(self, ids: list[str], size: int) -> None:
        self.before_retry()
        self.ledger.retried(ids, size)

    @property
    def path(self) -> Path:
        """Where the store is."""
        return Path(self.config.store)

    @property
    def options(self) -> dict[str, Any]:
        """How samples are collated."""
        return {"target": self.config.target, "prompt": self.config.prompt}

    def measure(self, stored: dict[str, Any] | None) -> None:
        """Tokenises the data set; samples that cannot be decoded are left out as configured, or as `stored` says.

        Args:
            stored: provenance of the store that is resumed, if any.
        """
        total = self.count
        self.measured = measure(
            self.loaded,
            self.data,
            total,
            tick=lambda done: self.progress("tokenise", done, total),
            workers=self.config.workers,
            skip_bad=self.config.skip_bad,
            known_bad=None if stored is None else stored.get("skipped", {}),
            **self.options,
        )
        self._tokenised = True
        if self.measured.skipped:
            self.data = Subset(self.data, self.measured.kept)
            self.count = len(self.data)
            self.ledger.skipped(self.measured.skipped)

    def prepare(self, stored: dict[str, Any] | None, reserve: int = 0, free: int | None = None) -> None:
        """Tokenises the data set, if that is not done yet, and settles the batches.

        Args:
            stored: provenance of the store that is resumed, if any: its batches and left-out samples hold.
            reserve: bytes of the device that batches must leave free.
            free: bytes of a device that is not there yet.

        Raises:
            EngineError: what is resumed was begun with fused layers and this is to run without, or the other way.
        """
        from modegap.engine.plan import choose_batching

        self._settle_fused(stored)
        self._check_names()
        if not self._tokenised:
            self.measure(stored)
        text_only = all(point.stream == "text" for point in self.points)
        lengths = self.measured.text if text_only else self.measured.llm
        if self.config.batch_size is not None:
            self.batching = Batching(self.config.batch_size)
        elif stored is not None and "batching" in stored:
            self.batching = Batching(**stored["batching"])
        else:
            longest = int(lengths.max())
            self.batching = choose_batching(self.loaded, self.points, longest, free, reserve)
        self.windows = list(schedule(lengths, self.count, self.batching))

    def _settle_fused(self, stored: dict[str, Any] | None) -> None:
        # a store of before there were fused layers says nothing of them: it goes on without, and still says nothing
        self._says_fused = stored is None or "fused" in stored
        begun = self.config.fused if stored is None else bool(stored.get("fused", False))
        if self._says_fused and begun != self.config.fused:
            raise EngineError(
                f"{self.path} was begun with fused={begun}, this asks for fused={self.config.fused}; use the same "
                "to resume it, or choose another store"
            )
        self.fused = begun

    def collate(self, samples: Sequence[Sample]) -> Inputs:
        """A batch as the model takes it, before it is placed; one at a time: tokenizers refuse two threads."""
        with self._collating:
            return self.loaded.collator.collate(samples, **self.options)

    def samples(self, indices: Sequence[int]) -> list[Item]:
        """Samples with their media, decoded here and now."""
        return list(decoded(self.data, indices, rate=sampling_rate(self.loaded)))

    def first_batch(self) -> tuple[dict[str, Shape], dict[str, Parity]]:
        """Captures the first samples as a batch and one by one: widths, row rules, largest differences.

        Where layers run fused, the model's own code is captured and compared first: there rounding leaves little
        room, so that a wrong module or padding that leaks is seen.
        """
        items = self.samples(self.windows[0].batches[0])
        part, blocks, changed = self._captured(items, fused=self.fused)
        self.layout = layout_of(self.loaded.collator, *part[0], self.config.prompt)  # it is decoded already
        part = part[:PARITY_SAMPLES]
        if changed:
            few, plain, _ = self._captured(part, fused=False)
            self._parity(few, plain, fused=False)
        parity = self._parity(part, blocks, fused=changed)
        return {name: (int(block.x.shape[-1]), block.rule) for name, block in blocks.items()}, parity

    def _captured(
        self, items: Sequence[Item], *, fused: bool
    ) -> tuple[Sequence[Item], dict[str, Block], bool]:
        """As many of the items as fit, their blocks, and whether layers ran fused."""
        with Capturer(self.loaded, self.points, fused=fused) as capturer:

            def work(part: Sequence[Item]) -> dict[str, Block]:
                host = self.collate([sample for _, sample in part])
                blocks = capturer(self.loaded.place(host), host)
                check_finite(blocks, host.ids)
                return blocks

            part, blocks = next(self.backoff.run(items, work))
            return part, blocks, capturer.changed

    def _parity(self, part: Sequence[Item], blocks: dict[str, Block], *, fused: bool) -> dict[str, Parity]:
        return check_parity(
            self.loaded,
            self.points,
            [sample for _, sample in part],
            blocks,
            dtype=self.config.store_dtype,
            fused=fused,
            **self.options,
        )

    @cached_property
    def layout(self) -> dict[str, Any]:
        """The tokens of one prompt, with which a replay compares what it rebuilds."""
        ((index, sample),) = self.samples([self.batches[0][0]])
        return layout_of(self.loaded.collator, index, sample, self.config.prompt)

    @property
    def batches(self) -> list[tuple[int, ...]]:
        """All batches, in the order in which they run."""
        return [batch for window in self.windows for batch in window.batches]

    def plan(self, shapes: dict[str, Shape], parity: dict[str, Any], rows: Rows) -> StorePlan:
        """Everything about the store but its rows."""
        from modegap.stores import PointPlan, StorePlan

        points = {}
        for point in self.points:
            width, rule = shapes[point.name]
            points[point.name] = PointPlan(
                width=width,
                rows=rows,
                lengths=None if rows == "pooled" else self.measured.lengths(point.stream, rule),
                dtype=self.config.store_dtype,
                stream=None if rows == "pooled" else point.stream,
            )
        return StorePlan(
            points=points,
            sample_ids=list(self.data.ids[: self.count]),
            labels=labels_of(self.data, self.count, self.measured.texts, self.measured.prompts),
            provenance=self._provenance(parity),
            chunk_bytes=self.config.chunk_bytes,
        )

    def _provenance(self, parity: dict[str, Any]) -> dict[str, Any]:
        from modegap.stores import provenance

        return provenance(
            model=self.loaded.name,
            revision=self.loaded.revision,
            **self.weights(),
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            prompt=self._prompt(),
            dataset=self.data.name,
            config=self.config.rows_config(),
            family=self.loaded.family,
            as_text=self.as_text,
            target=self.config.target,
            layout=self.layout,
            pool=self.config.pool,
            modules={point.name: f"{point.module_path}:{point.pick}" for point in self.points},
            **self.settled(),
            parity=parity,
        )

    def weights(self) -> dict[str, str]:
        """Which weights a folder held: rows of others must not meet these in a run that goes on."""
        digest = weights_digest(self.loaded.name)
        return {} if digest is None else {"weights": digest}

    def settled(self) -> dict[str, Any]:
        """What a run that goes on must settle alike."""
        return {
            "batching": {"samples": self.batching.samples, "tokens": self.batching.tokens},
            "skipped": self.measured.skipped,
            **({"fused": self.fused} if self._says_fused else {}),
        }

    def _prompt(self) -> str:
        if self.data.modality == "text":
            return self.config.prompt or ""
        return self.loaded.collator.question(self.config.prompt)

    def _check_names(self) -> None:
        """Ids, labels and point names that the store would refuse, before hours of work."""
        from modegap.stores import PointPlan, StorePlan

        points = {point.name: PointPlan(1, "pooled") for point in self.points}
        StorePlan(points, list(self.data.ids[: self.count]), labels_of(self.data, self.count, ()))

    def _check_modality(self) -> None:
        if self.data.modality not in ("text", self.loaded.modality):
            raise EngineError(
                f"data set {self.data.name} holds {self.data.modality}, {self.loaded.name} takes "
                f"{self.loaded.modality}; use another model, or as_text=True for the texts"
            )
        media = [p.name for p in self.points if p.stream not in ("llm", "text")]
        if media and self.data.modality == "text":
            raise EngineError(
                f"text does not pass the adapter, so there is no {media[0]} for the texts of "
                f"{self.data.name}; ask for text_embedding or llm_hidden_<k>"
            )
        if self.config.pool == "modality" and self.data.modality == "text":
            raise EngineError(
                f"the texts of {self.data.name} have no media rows to pool over; use pool='all'"
            )


def load_for(config: ExtractConfig) -> LoadedModel:
    """The model that a configuration names.

    Raises:
        EngineError: as `load`; or the memory that it is to be loaded into cannot hold it (`preflight`).
    """
    from modegap.engine.models.loading import load
    from modegap.engine.plan import check_weights

    if config.preflight:
        check_weights(config)
    return load(
        config.model,
        dtype=config.dtype,
        device_map=config.device_map,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        points=config.module,
    )


def stored_provenance(path: Path) -> dict[str, Any] | None:
    """The provenance of the store at `path`; None where none can be read."""
    from modegap.stores import ActivationStore, StoreError

    try:
        return ActivationStore.open(path).provenance
    except StoreError:  # not a store, or a damaged one: creating over it says so
        return None
