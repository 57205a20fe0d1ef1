"""`extract`: a data set through a model into a store, resumable at any sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.engine.datasets import Dataset, Sample, as_text, dataset
from modegap.engine.errors import EngineError
from modegap.engine.models.backoff import Backoff
from modegap.engine.models.collate import Inputs
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.loading import load
from modegap.engine.models.points import HookPoint
from modegap.engine.replay.items import layout_of

from .capturer import Capturer
from .config import ExtractConfig
from .ledger import Ledger
from .lengths import StreamRule
from .parity import Parity, check_parity
from .plan import Measured, Window, labels_of, measure, schedule
from .rows import HostRows, host_rows, token_columns

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, StorePlan, Writer

Progress = Callable[[str, int, int], None]
PARITY_SAMPLES = 4
Item = tuple[int, Sample]
# width and row rule of a point
Shape = tuple[int, StreamRule | None]
# sample index, rows by point, token columns by stream
Ready = tuple[int, dict[str, HostRows], dict[str, tuple[Any, Any]]]


def extract(
    config: ExtractConfig,
    *,
    model: LoadedModel | None = None,
    data: Dataset | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """Captures hidden states and returns the finished store.

    All texts are tokenised first, so that every row range is known; then samples run in batches of similar
    length and are stored in data set order. Killed at any moment and called again, it goes on at the first
    sample that is not stored and ends with the same bytes as an uninterrupted run on the same machine.
    Batches that do not fit into memory run again in smaller parts, noted in the store (`read_retries`); no
    sample is left out.

    Before anything is stored, the first batch is compared with plain forwards of one sample each; the largest
    difference at each point is in the store's provenance under `parity`.

    Args:
        config: what to do.
        model: instead of loading `config.model`.
        data: instead of opening `config.dataset`.
        progress: called with ("tokenise" or "capture", samples done, samples in all).

    Raises:
        EngineError: anything wrong with model, data set, hook points or values; one line with the remedy.
        StoreError: the store exists with another plan, or cannot be written.
    """
    if model is None:
        model = load(
            config.model,
            dtype=config.dtype,
            device_map=config.device_map,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            points=config.module,
        )
    data = dataset(config.dataset) if data is None else data
    return _Run(model, data, config, progress or (lambda phase, done, total: None)).finish()


class _Run:
    """The steps of one `extract`."""

    def __init__(self, loaded: LoadedModel, data: Dataset, config: ExtractConfig, progress: Progress) -> None:
        self.loaded, self.config, self.progress = loaded, config, progress
        self.points = loaded.select(config.points)
        only_text = all(point.stream == "text" for point in self.points)
        textual = config.as_text or loaded.modality == "text" or only_text
        self.as_text = textual and data.modality != "text"
        self.data = as_text(data) if self.as_text else data
        self._check_modality()
        self.count = len(data) if config.limit is None else min(config.limit, len(data))
        self._layout: dict[str, Any] = {}  # of one prompt, with which a replay compares what it rebuilds
        self.streams: dict[str, HookPoint] = {}
        for point in self.points:
            self.streams.setdefault(point.stream, point)

    def finish(self) -> ActivationStore:
        from modegap.stores import ActivationStore

        if "://" in str(self.config.store):
            raise EngineError(
                f"extraction writes to a local folder, got {self.config.store}: then put the store there with "
                f"`modegap import FOLDER {self.config.store}`"
            )
        path = Path(self.config.store)
        if path.exists() and not self.config.resume:
            raise EngineError(f"{path} exists; choose another store, delete it, or resume it (resume=True)")
        self._check_names()
        measured = measure(
            self.loaded,
            self.data,
            self.count,
            target=self.config.target,
            prompt=self.config.prompt,
            tick=lambda done: self.progress("tokenise", done, self.count),
        )
        order = measured.llm if not all(p.stream == "text" for p in self.points) else measured.text
        windows = list(schedule(order, self.count, self.config.batch_size))
        ledger = Ledger(path)
        backoff: Backoff[Item] = Backoff(lambda item: item[1].id, ledger.retried)
        shapes, parity = self._first_batch(backoff, windows[0].batches[0])
        store = ActivationStore.create(path, self._plan(measured, shapes, parity, path), exist_ok=True)
        ledger.attach()
        with Capturer(self.loaded, self.points) as capturer, store.writer() as writer:
            todo = {int(index) for index in writer.todo}
            self.progress("capture", self.count - len(todo), self.count)
            for window in windows:
                if not todo.isdisjoint(range(window.start, window.stop)):
                    self._window(window, todo, capturer, backoff, writer)
        return ActivationStore.open(path)

    def _window(
        self, window: Window, todo: set[int], capturer: Capturer, backoff: Backoff[Item], writer: Writer
    ) -> None:
        """Runs the batches of a window that still have samples to store, and puts those in data set order."""
        from modegap.stores import SampleRows

        waiting: dict[int, Ready] = {}  # rows in host memory until the samples before them have come
        due = [index for index in range(window.start, window.stop) if index in todo]
        put = 0
        for batch in window.batches:
            if todo.isdisjoint(batch):
                continue
            samples = [(index, self.data[index]) for index in batch]
            for _, made in backoff.run(samples, lambda part: self._work(capturer, part)):
                waiting.update({ready[0]: ready for ready in made})
                while put < len(due) and due[put] in waiting:
                    index, rows, tokens = waiting.pop(due[put])
                    given = {name: SampleRows(found.tokens, found.pooled) for name, found in rows.items()}
                    writer.put(index, given, tokens)
                    put += 1
                    todo.discard(index)
                    self.progress("capture", self.count - len(todo), self.count)

    def _work(self, capturer: Capturer, part: Sequence[Item]) -> list[Ready]:
        inputs = self._collate([sample for _, sample in part])
        blocks = capturer(inputs)
        rows = {name: host_rows(block, self.config.rows) for name, block in blocks.items()}
        ready: list[Ready] = []
        for at, (index, _) in enumerate(part):
            tokens = {}
            if self.config.rows != "pooled":
                for stream, point in self.streams.items():
                    length = int(blocks[point.name].mask[at].sum())
                    tokens[stream] = token_columns(self.loaded, inputs, at, stream, length)
            ready.append((index, {name: found[at] for name, found in rows.items()}, tokens))
        return ready

    def _first_batch(
        self, backoff: Backoff[Item], batch: Sequence[int]
    ) -> tuple[dict[str, Shape], dict[str, Parity]]:
        """Captures the first samples as a batch and one by one: widths, row rules, largest differences."""
        items = [(index, self.data[index]) for index in batch]
        with Capturer(self.loaded, self.points) as capturer:
            part, blocks = next(
                backoff.run(items, lambda part: capturer(self._collate([item[1] for item in part])))
            )
        parity = check_parity(
            self.loaded,
            self.points,
            [sample for _, sample in part[:PARITY_SAMPLES]],
            blocks,
            dtype=self.config.store_dtype,
            target=self.config.target,
            prompt=self.config.prompt,
        )
        self._layout = layout_of(self.loaded.collator, *part[0], self.config.prompt)
        return {name: (int(block.x.shape[-1]), block.rule) for name, block in blocks.items()}, parity

    def _collate(self, samples: Sequence[Sample]) -> Inputs:
        return self.loaded.collate(samples, target=self.config.target, prompt=self.config.prompt)

    def _plan(
        self, measured: Measured, shapes: dict[str, Shape], parity: dict[str, Parity], path: Path
    ) -> StorePlan:
        from modegap.stores import PointPlan, StorePlan

        points = {}
        for point in self.points:
            width, rule = shapes[point.name]
            tokens = self.config.rows != "pooled"
            points[point.name] = PointPlan(
                width=width,
                rows=self.config.rows,
                lengths=measured.lengths(point.stream, rule) if tokens else None,
                dtype=self.config.store_dtype,
                stream=point.stream if tokens else None,
            )
        return StorePlan(
            points=points,
            sample_ids=list(self.data.ids[: self.count]),
            labels=labels_of(self.data, self.count, measured.texts, measured.prompts),
            provenance=self._provenance(parity, path),
            chunk_bytes=self.config.chunk_bytes,
        )

    def _provenance(self, parity: dict[str, Parity], path: Path) -> dict[str, Any]:
        from modegap.stores import provenance

        found: dict[str, Any] = {name: gap.to_json() for name, gap in parity.items()}
        if path.exists():  # the differences of the run that began the store stay; they depend on the machine
            found = _stored_parity(path) or found
        return provenance(
            model=self.loaded.name,
            revision=self.loaded.revision,
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            prompt=self._prompt(),
            dataset=self.data.name,
            config=self.config.rows_config(),
            family=self.loaded.family,
            as_text=self.as_text,
            target=self.config.target,
            layout=self._layout,
            modules={point.name: f"{point.module_path}:{point.pick}" for point in self.points},
            parity=found,
        )

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
                f"{self.data.name}; "
                "ask for text_embedding or llm_hidden_<k>"
            )


def _stored_parity(path: Path) -> dict[str, Any] | None:
    from modegap.stores import ActivationStore, StoreError

    try:
        found = ActivationStore.open(path).provenance.get("parity")
    except StoreError:  # not a store, or a damaged one: creating over it says so
        return None
    return dict(found) if found else None
