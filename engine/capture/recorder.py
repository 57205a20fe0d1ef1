"""`record`: capture from a loop of the user's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from modegap.engine.datasets.base import Label, Sample
from modegap.engine.errors import EngineError
from modegap.engine.models.collate import Inputs
from modegap.engine.models.loaded import LoadedModel

from .capturer import Capturer
from .config import Pool, Rows
from .rows import Array, HostRows, host_rows, token_columns

if TYPE_CHECKING:
    from modegap.stores import ActivationStore

Batch = Inputs | Sequence[Sample] | Mapping[str, Any]


class Recorder:
    """What `record` gives: call it with a batch.

    Attributes:
        store: the finished store; None until the `with` block has ended well.
        ids: sample ids recorded so far.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        points: Sequence[str],
        path: Path,
        rows: Rows,
        dtype: Literal["float16", "float32"],
        pool: Pool = "all",
    ) -> None:
        """Use `record` instead."""
        self.loaded, self.rows, self.dtype, self.pool = loaded, rows, dtype, pool
        self.points = loaded.select(points)
        self.capturer = Capturer(loaded, self.points)
        self.ids: list[str] = []
        self.store: ActivationStore | None = None
        self._path = path
        self._known: set[str] = set()
        self._labels: dict[str, list[Label]] = {}
        self._prompts: list[str | None] = []
        self._widths: dict[str, int] = {}
        self._lengths: dict[str, list[int]] = {point.stream: [] for point in self.points}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        self._files: dict[str, IO[bytes]] = {}

    def __call__(
        self,
        batch: Batch,
        *,
        ids: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[Label]] | None = None,
    ) -> None:
        """Runs one forward and keeps its rows.

        Args:
            batch: samples, `Inputs` (of `batches` or `collate`), or the tensors of the caller's own processor
                call.
            ids: sample ids for plain tensors; running numbers unless given.
            labels: label columns for plain tensors; samples and `Inputs` bring their own.

        Raises:
            EngineError: an id that was recorded before, other label names than before, or a capture error.
        """
        inputs = self._inputs(batch, ids)
        columns = self._columns(inputs, labels)
        twice = next((name for name in inputs.ids if name in self._known), None) or _repeated(inputs.ids)
        if twice is not None:
            raise EngineError(f"sample {twice!r} was recorded before; give every sample its own id")
        blocks = self.capturer(inputs)
        rows = {
            name: host_rows(block, self.rows, inputs.ids, name=name, pool=self.pool)
            for name, block in blocks.items()
        }
        for point in self.points:
            block = blocks[point.name]
            width = self._widths.setdefault(point.name, int(block.x.shape[-1]))
            if width != block.x.shape[-1]:
                raise EngineError(
                    f"{point.name} had {width} features before, now {block.x.shape[-1]}; make two stores"
                )
        for at in range(len(inputs)):
            for stream, point in self._streams().items():
                length = int(blocks[point.name].mask[at].sum())
                self._lengths[stream].append(length)
                if self.rows != "pooled":
                    ids_, modality = token_columns(self.loaded, inputs, at, stream, length)
                    self._append(f"ids-{stream}", ids_)
                    self._append(f"modality-{stream}", modality)
            for point in self.points:
                found = rows[point.name][at]
                for kind, values in (("tokens", found.tokens), ("pooled", found.pooled)):
                    if values is not None:
                        self._append(f"{kind}-{point.name}", values.astype(np.float32, copy=False))
        self.ids += inputs.ids
        self._prompts += [sample.prompt for sample in inputs.samples]
        self._known.update(inputs.ids)
        for label, column in columns.items():
            self._labels.setdefault(label, []).extend(column)

    def _inputs(self, batch: Batch, ids: Sequence[str] | None) -> Inputs:
        if isinstance(batch, Inputs):
            return self.loaded.place(batch)
        if isinstance(batch, Sequence) and batch and all(isinstance(sample, Sample) for sample in batch):
            return self.loaded.collate(batch)
        if not isinstance(batch, Mapping):
            raise EngineError(
                f"got {type(batch).__name__}; record takes samples, Inputs, or a processor's output"
            )
        tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
        count = len(tensors["input_ids"]) if "input_ids" in tensors else 0
        names = list(ids) if ids is not None else [str(len(self.ids) + i) for i in range(count)]
        return self.loaded.place(self.loaded.collator.wrap(tensors, names))

    def _columns(
        self, inputs: Inputs, labels: Mapping[str, Sequence[Label]] | None
    ) -> dict[str, list[Label]]:
        if labels is not None:
            found = {name: list(values) for name, values in labels.items()}
            wrong = next((name for name, values in found.items() if len(values) != len(inputs)), None)
            if wrong is not None:
                raise EngineError(f"label {wrong!r} has {len(found[wrong])} values for {len(inputs)} samples")
        else:
            found = {
                name: [sample.labels.get(name) for sample in inputs.samples]
                for name in inputs.samples[0].labels
            }
            if any(sample.labels.keys() != found.keys() for sample in inputs.samples):
                raise EngineError(
                    "the samples of a batch have different label names; give None where one is unknown"
                )
            found.setdefault("text", [sample.text for sample in inputs.samples])
        if self.ids and found.keys() != self._labels.keys():
            raise EngineError(f"got the labels {sorted(found)}, earlier batches had {sorted(self._labels)}")
        return found

    def _streams(self) -> dict[str, Any]:
        first: dict[str, Any] = {}
        for point in self.points:
            first.setdefault(point.stream, point)
        return first

    def _append(self, name: str, values: Array) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        self._files[name].write(np.ascontiguousarray(values).data)

    def finish(self) -> ActivationStore:
        """Writes the store from what was recorded.

        Raises:
            EngineError: nothing was recorded.
            StoreError: the store cannot be written.
        """
        from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan, provenance

        if not self.ids:
            raise EngineError("nothing was recorded; call rec(batch) inside the with block")
        self._close()
        tokens = self.rows != "pooled"
        lengths = {stream: np.asarray(values, dtype=np.int64) for stream, values in self._lengths.items()}
        plans = {
            point.name: PointPlan(
                width=self._widths[point.name],
                rows=self.rows,
                lengths=lengths[point.stream] if tokens else None,
                dtype=self.dtype,
                stream=point.stream if tokens else None,
            )
            for point in self.points
        }
        texts = self._labels.get("text")
        labels = {name: values for name, values in self._labels.items() if values is not texts or any(values)}
        if any(prompt is not None for prompt in self._prompts):
            labels.setdefault("prompt", list(self._prompts))
        origin = provenance(
            model=self.loaded.name,
            revision=self.loaded.revision,
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            config={"points": [point.name for point in self.points], "rows": self.rows, "pool": self.pool},
            pool=self.pool,
            family=self.loaded.family,
            modules={point.name: f"{point.module_path}:{point.pick}" for point in self.points},
        )
        store = ActivationStore.create(self._path, StorePlan(plans, self.ids, labels, origin))
        with store.writer() as writer:
            for index, (rows, columns) in enumerate(self._spooled(lengths)):
                writer.put(
                    index, {n: SampleRows(found.tokens, found.pooled) for n, found in rows.items()}, columns
                )
        self.store = ActivationStore.open(self._path)
        return self.store

    def _spooled(
        self, lengths: Mapping[str, Any]
    ) -> Iterator[tuple[dict[str, HostRows], dict[str, tuple[Array, Array]]]]:
        """The recorded rows of each sample again, in order."""
        at = dict.fromkeys(lengths, 0)
        for index in range(len(self.ids)):
            rows = {}
            for point in self.points:
                width, start, count = self._widths[point.name], at[point.stream], lengths[point.stream][index]
                tokens = (
                    None if self.rows == "pooled" else self._read(f"tokens-{point.name}", start, count, width)
                )
                pooled = (
                    None if self.rows == "tokens" else self._read(f"pooled-{point.name}", index, 1, width)[0]
                )
                rows[point.name] = HostRows(tokens, pooled)
            columns: dict[str, tuple[Array, Array]] = {}
            for stream, counts in lengths.items():
                if self.rows != "pooled":
                    ids = self._read(f"ids-{stream}", at[stream], counts[index], None)
                    columns[stream] = (ids, self._read(f"modality-{stream}", at[stream], counts[index], None))
                at[stream] += int(counts[index])
            yield rows, columns

    def _read(self, name: str, start: int, count: int, width: int | None) -> Array:
        kind = name.partition("-")[0]
        dtype = np.dtype({"ids": np.int32, "modality": np.uint8}.get(kind, np.float32))
        size = dtype.itemsize * (width or 1)
        found: Array = np.fromfile(
            self._folder / name, dtype=dtype, count=int(count) * (width or 1), offset=int(start) * size
        )
        return found if width is None else found.reshape(-1, width)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def discard(self) -> None:
        """Removes the temporary files."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def record(
    model: LoadedModel,
    points: Sequence[str],
    store: str | Path,
    rows: Rows = "both",
    *,
    dtype: Literal["float16", "float32"] = "float16",
    pool: Pool = "all",
) -> Iterator[Recorder]:
    """Records every batch that the block passes to `rec(batch)`, and writes the store when the block ends.

    The number of samples is not known before, so rows wait in temporary files (fp32, beside the store) until
    the end. It is all or nothing: after an error there is no store. `extract` is the resumable way.

    Args:
        model: from `load` or `adopt`.
        points: hook points, names or globs.
        store: folder of the store; must not exist.
        rows: every token row, one mean row a sample, or both.
        dtype: of the stored rows.
        pool: the mean row is over all tokens of a sample, or over those that stand for its media.

    Raises:
        EngineError: an unknown hook point, an existing store, or nothing recorded.
    """
    if not isinstance(model, LoadedModel):
        raise EngineError(f"record got a {type(model).__name__}; wrap it: adopt(model, processor)")
    if "://" in str(store):
        raise EngineError(
            f"record writes to a local folder, got {store}: then put the store there with "
            f"`modegap import FOLDER {store}`"
        )
    path = Path(store).expanduser()
    if path.exists():
        raise EngineError(f"{path} exists; choose another store or delete it")
    recorder = Recorder(model, points, path, rows, dtype, pool)
    try:
        with recorder.capturer:
            yield recorder
        recorder.finish()
    finally:
        recorder.discard()


def _repeated(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            return name
        seen.add(name)
    return None
