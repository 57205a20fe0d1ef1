"""Capture by replay: the decoder's hook points from stored adapter rows, without encoder and media."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.backoff import Backoff
from modegap.engine.models.collate import MEDIA_ID, TEXT
from modegap.engine.models.fused import fused_layers
from modegap.engine.models.hooks import attached, evaluating
from modegap.engine.models.loaded import LoadedModel
from modegap.engine.models.points import HookPoint
from modegap.engine.replay.items import ReplayItem
from modegap.engine.replay.runner import Replay
from modegap.engine.replay.source import ReplaySource

from .capturer import Block
from .config import Pool, Rows
from .job import stored_provenance
from .rows import HostRows, host_rows

if TYPE_CHECKING:
    from modegap.stores import ActivationStore, StorePlan

_WINDOW = 16
Progress = Callable[[int, int], None]


def extract_replayed(
    loaded: LoadedModel,
    source: ReplaySource,
    path: str | Path,
    points: Sequence[str],
    *,
    rows: Mapping[str, Rows] | None = None,
    pool: Pool = "all",
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 8,
    kinds: Mapping[str, Literal["category", "number", "text"]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> ActivationStore:
    """A store of hidden states inside the decoder over a source's prompts, and of the rows that went in.

    What `extract` stores for the same samples, up to rounding, but by replay: for a decoder that was changed
    while encoder and adapter were not. Layers run fused (`fused_layers`), which provenance says. Killed and called
    again, it goes on at the first sample that is missing.

    Args:
        loaded: the model.
        source: opened with target="paper", so that its items are prompts.
        path: folder of the store.
        points: hook points inside the decoder (`llm_hidden_<k>`, `llm_final`), and the source's own.
        rows: which rows of a hook point are stored: one mean row a sample (`pooled`) unless given.
        pool: mean over all tokens of a sample or over those that stand for its media.
        dtype: of the rows.
        batch_size: samples a forward; halved where memory runs out.
        kinds: of the source's label columns; guessed from the values unless given.
        provenance: what the store says of itself.
        progress: called as `progress(samples, all samples)`.

    Raises:
        EngineError: a hook point outside the decoder, values that are not finite, a sample that does not fit.
        StoreError: something else is at `path`, or it cannot be written.
    """
    from modegap.stores import ActivationStore, SampleRows

    inside = _inside(loaded, source, points)
    begun = stored_provenance(Path(path)) if Path(path).exists() else None
    # a store of before there were fused layers says nothing of them: it goes on without, and still says nothing
    fused = begun is None or bool(begun.get("fused", False))
    said = {"fused": fused} if begun is None or "fused" in begun else {}
    wanted: dict[str, Rows] = {name: (rows or {}).get(name, "pooled") for name in points}
    plan = _plan(loaded, source, points, wanted, dtype, kinds or {}, {**(provenance or {}), **said})
    # one position of the head's: its logits are not wanted
    items = tuple(replace(item, target=np.array([len(item) - 1])) for item in source.items)
    replay = Replay(loaded, replace(source, items=items), batch_size=batch_size)
    store = ActivationStore.create(path, plan, exist_ok=True)
    work = _Forward(replay, inside, source.point if source.point in points else None, wanted, pool)
    layers = fused_layers(loaded.model) if fused else nullcontext()
    with store.writer() as writer, evaluating(loaded.model), layers, torch.no_grad():
        todo = [int(index) for index in writer.todo]
        for index, found in _in_order(replay, todo, work):
            given = {name: SampleRows(one.tokens, one.pooled) for name, one in found.items()}
            writer.put(index, given, _columns(loaded, items[index], plan))
            if progress is not None:
                progress(index + 1, len(items))
    return ActivationStore.open(path)


class _Forward:
    """Rows of a batch of samples at every hook point."""

    def __init__(
        self,
        replay: Replay,
        inside: Sequence[HookPoint],
        own: str | None,
        wanted: Mapping[str, Rows],
        pool: Pool,
    ) -> None:
        self.replay, self.inside, self.own, self.wanted, self.pool = replay, inside, own, wanted, pool

    def __call__(self, members: Sequence[int]) -> list[dict[str, HostRows]]:
        items = [self.replay.source.items[number] for number in members]
        names = [item.id for item in items]
        z = [self.replay.rows(number) for number in members]
        found: list[dict[str, HostRows]] = [{} for _ in members]
        if self.own is not None:
            raw = [self.replay.source.rows(item).float() for item in items]
            width = max(map(len, raw))
            mask = torch.tensor([[at < len(one) for at in range(width)] for one in raw])
            padded = torch.nn.utils.rnn.pad_sequence(raw, batch_first=True)
            self._keep(found, self.own, Block(padded, mask, None, mask), names, "all")
        if self.inside:
            seen: dict[str, torch.Tensor] = {}
            packed = self.replay.decoder.pack(items, torch.cat(z), share=False)
            pairs = [(point, partial(seen.__setitem__, point.name)) for point in self.inside]
            with attached(self.replay.loaded.model, pairs):
                self.replay.decoder.logits(packed)
            shape = packed.embeds.shape[:2]
            mask, media = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
            for row, item in enumerate(items):
                mask[row, : len(item)] = True
                media[row, torch.from_numpy(item.slot)] = True
            for point in self.inside:
                self._keep(found, point.name, Block(seen[point.name], mask, None, media), names, self.pool)
        return found

    def _keep(
        self, found: list[dict[str, HostRows]], name: str, block: Block, ids: Sequence[str], pool: Pool
    ) -> None:
        rows = host_rows(block, self.wanted[name], ids, name=name, pool=pool)
        for one, made in zip(found, rows, strict=True):
            one[name] = made


def _in_order(
    replay: Replay, todo: Sequence[int], work: _Forward
) -> Iterator[tuple[int, dict[str, HostRows]]]:
    """Samples in the store's order, computed in batches of similar length."""
    items, size = replay.source.items, replay.batch_size
    backoff: Backoff[int] = Backoff(lambda number: items[number].id, replay.note_retry)
    for start in range(0, len(todo), size * _WINDOW):
        window = todo[start : start + size * _WINDOW]
        order = sorted(window, key=lambda number: -len(items[number]))
        made: dict[int, dict[str, HostRows]] = {}
        for at in range(0, len(order), size):
            for part, rows in backoff.run(order[at : at + size], work):
                made.update(zip(part, rows, strict=True))
        for index in window:
            yield index, made.pop(index)


def _inside(loaded: LoadedModel, source: ReplaySource, points: Sequence[str]) -> list[HookPoint]:
    found = loaded.select([name for name in points if name != source.point])
    wrong = next((point.name for point in found if point.stream != "llm"), None)
    if wrong is not None:
        raise EngineError(
            f"{wrong} does not lie in the decoder, so a replay from {source.point} does not pass it; ask for "
            "llm_hidden_<k>, llm_final or the point of the stored rows"
        )
    return found


def _plan(
    loaded: LoadedModel,
    source: ReplaySource,
    points: Sequence[str],
    wanted: Mapping[str, Rows],
    dtype: Literal["float16", "float32"],
    kinds: Mapping[str, Literal["category", "number", "text"]],
    provenance: Mapping[str, Any],
) -> StorePlan:
    from modegap.stores import LabelColumn, PointPlan, StorePlan

    plans = {}
    for name in points:
        own = name == source.point
        counts = [len(item.slot) if own else len(item) for item in source.items]
        tokens = wanted[name] != "pooled"
        plans[name] = PointPlan(
            width=source.width if own else int(loaded.hidden_size or source.width),
            rows=wanted[name],
            lengths=np.array(counts) if tokens else None,
            dtype=dtype,
            stream=("adapter" if own else "llm") if tokens else None,
        )
    labels: dict[str, Any] = {
        name: LabelColumn(kinds[name], values) if name in kinds else list(values)
        for name, values in source.labels.items()
    }
    return StorePlan(plans, list(source.ids), labels, provenance)


def _columns(loaded: LoadedModel, item: ReplayItem, plan: StorePlan) -> dict[str, Any]:
    """Token ids and modality of the streams that the store has."""
    kind = MEDIA_ID[loaded.modality]
    found: dict[str, Any] = {}
    for point in plan.points.values():
        if point.stream == "adapter":
            ids = item.tokens[item.slot].astype(np.int32)
            found["adapter"] = (ids, np.full(len(ids), kind, dtype=np.uint8))
        elif point.stream == "llm":
            modality = np.full(len(item), TEXT, dtype=np.uint8)
            modality[item.slot] = kind
            found["llm"] = (item.tokens.astype(np.int32), modality)
    return found
