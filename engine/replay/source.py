"""`ReplaySource`: the samples of a store as sequences for the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from modegap.engine.errors import EngineError
from modegap.engine.models.collate import TEXT
from modegap.engine.models.loaded import LoadedModel

from .items import Int, Layout, ReplayItem, runs

if TYPE_CHECKING:
    from modegap.stores import ActivationStore

Target = Literal["answer", "paper"]
TEXT_LABELS = ("text", "transcript", "caption", "answer")
PROMPT_LABEL = "prompt"
_POINTS = ("adapter_output", "text_embedding")


@dataclass(frozen=True, slots=True, eq=False)
class ReplaySource:
    """Sequences and where their rows come from.

    Attributes:
        point: hook point of the rows.
        width: width of the rows.
        items: samples that can be replayed, in the order of the store.
        left_out: (sample id, reason) of the others.
        rows: called with an item; its rows [t, width] on the host.
        target: what is scored: `answer` (the sample's text) or `paper` (the prompt's own tokens).
        name: where the rows are from, for messages and certificates.
        content_hash: of the store; empty for rows that are not stored.
        labels: label columns by name, one value an item.
    """

    point: str
    width: int
    items: tuple[ReplayItem, ...]
    left_out: tuple[tuple[str, str], ...]
    rows: Callable[[ReplayItem], torch.Tensor]
    target: Target
    name: str
    content_hash: str
    labels: dict[str, tuple[Any, ...]]

    def __len__(self) -> int:
        """Samples that can be replayed."""
        return len(self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(item.id for item in self.items)

    def subset(self, numbers: Sequence[int], reason: str) -> ReplaySource:
        """Only the samples of these numbers, in that order; the others are left out for the reason.

        Raises:
            EngineError: no number is given.
        """
        if not len(numbers):
            raise EngineError(f"no sample of {self.name} is left: {reason}")
        kept = set(numbers)
        dropped = [(item.id, reason) for number, item in enumerate(self.items) if number not in kept]
        return replace(
            self,
            items=tuple(self.items[number] for number in numbers),
            left_out=(*self.left_out, *dropped),
            labels={name: tuple(column[n] for n in numbers) for name, column in self.labels.items()},
        )


def open_source(
    loaded: LoadedModel,
    store: ActivationStore | str | Path,
    *,
    point: str | None = None,
    target: Target = "answer",
    target_label: str | None = None,
    prompt: str | None = None,
    limit: int | None = None,
) -> ReplaySource:
    """The samples of a store as the decoder of `loaded` is to read them; reads no rows yet.

    A media model reads a sample as its prompt with the stored rows in the place of the media, then the answer.
    The rows are `adapter_output` (the modal law) or `text_embedding` (the text law: the same prompt and target
    with a text in the place of the media). A text model reads its own texts, whose tokens are the target.

    The ids around the rows are those that were stored with an llm hook point, or else rebuilt from the prompt; a
    store that says how its first sample was laid out is compared with that.

    Args:
        loaded: the model whose decoder reads the rows.
        store: a store with token rows, or its path.
        point: hook point of the rows; `adapter_output` where the store has it, else `text_embedding`.
        target: `answer` scores the sample's text; `paper` appends nothing and scores every token of the prompt
            after the first, placeholders included, as the published scripts do.
        target_label: label column of the target texts; `text`, `transcript`, `caption` or `answer` unless given.
        prompt: instead of the stored prompts (or the family's own, where none is stored).
        limit: only the first so many complete samples.

    Raises:
        EngineError: no such rows or no targets (the message names the capture option that provides them), rows
            of another width, or a layout that cannot be rebuilt.
        StoreError: the store cannot be opened.
    """
    from modegap.stores import as_store

    if target not in ("answer", "paper"):
        raise ValueError(f"target: got {target!r}, expected 'answer' or 'paper'")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: got {limit}, expected at least 1")
    store = as_store(store)
    return _Opener(loaded, store, point, target, target_label, prompt, limit).open()


class _Opener:
    """The steps of `open_source`."""

    def __init__(
        self,
        loaded: LoadedModel,
        store: ActivationStore,
        point: str | None,
        target: Target,
        target_label: str | None,
        prompt: str | None,
        limit: int | None,
    ) -> None:
        self.loaded, self.store, self.target, self.prompt = loaded, store, target, prompt
        self.point = _point(store, point)
        self.rows = store.rows(self.point)
        self.layout = Layout(loaded.collator)
        self.media = loaded.modality != "text"
        width = store.points[self.point].width
        if loaded.hidden_size is not None and width != loaded.hidden_size:
            raise EngineError(
                f"{self.point} of {store.path} is {width} wide, the decoder of {loaded.name} {loaded.hidden_size}; "
                "replay with the model that the store was captured from"
            )
        complete = np.flatnonzero(store.complete_samples())
        self.indices: list[int] = complete[:limit].tolist()
        if not self.indices:
            raise EngineError(f"{store.path} has no complete sample; resume its extraction, then replay")
        self.texts = self._texts(target_label)
        self.no_target = (
            "it has no target text" if target_label is None else f"it has no value of {target_label!r}"
        )
        self.asked = store.labels[PROMPT_LABEL].values if PROMPT_LABEL in store.labels else None

    def open(self) -> ReplaySource:
        store, items, left_out = self.store, [], []
        for index in self.indices:
            made = self._item(index)
            if isinstance(made, str):
                left_out.append((store.samples[index], made))
            else:
                items.append(made)
        if not items:
            raise EngineError(f"no sample of {store.path} can be replayed: {left_out[0][1]}")
        self._check_layout()
        kept = [item.index for item in items]
        return ReplaySource(
            point=self.point,
            width=store.points[self.point].width,
            items=tuple(items),
            left_out=tuple(left_out),
            rows=self._read,
            target=self.target,
            name=str(store.path),
            content_hash=store.content_hash(),
            labels={name: tuple(column.values[i] for i in kept) for name, column in store.labels.items()},
        )

    def _read(self, item: ReplayItem) -> torch.Tensor:
        return torch.from_numpy(self.rows.sample(item.index))

    def _texts(self, label: str | None) -> Sequence[Any] | None:
        if self.target == "paper" or not self.media:
            return None
        labels = self.store.labels
        name = label or next((name for name in TEXT_LABELS if name in labels), None)
        if name is None or name not in labels:
            asked = "target texts" if label is None else f"label column {label!r}"
            raise EngineError(
                f"{self.store.path} holds no {asked}, only {', '.join(labels) or 'no labels'}; extract a data set "
                "whose samples have texts (its text column), name the column with target_label, or score the "
                "prompt with target='paper'"
            )
        return labels[name].values

    def _item(self, index: int) -> ReplayItem | str:
        """The sample's sequence, or why it has none."""
        name = self.store.samples[index]
        start, stop = self.rows.sample_range(index)
        if stop == start:
            return "it has no stored rows"
        if not self.media:
            tokens, slot, first = self.layout.text(self._question(index), self._ids(self.rows, start, stop))
            first = 1 if self.target == "paper" else first
            if first >= len(tokens):
                return "it has no token that another one predicts"
            return ReplayItem(index, name, tokens, slot, np.arange(first, len(tokens)))
        answer = np.zeros(0, dtype=np.int64)
        if self.texts is not None:
            text = self.texts[index]
            answer = self.layout.answer(str(text)) if text is not None else answer
            if not len(answer):
                return self.no_target
        tokens, slot = self._prompt(index, stop - start)
        if self.point == "text_embedding":
            tokens = tokens.copy()
            tokens[slot] = self._ids(self.rows, start, stop)  # what stands there, where the prompt is scored
        first = len(tokens) if self.texts is not None else 1
        tokens = np.concatenate([tokens, answer])
        return ReplayItem(index, name, tokens, slot, np.arange(first, len(tokens)))

    def _question(self, index: int) -> str | None:
        if self.prompt is not None:
            return self.prompt
        own = None if self.asked is None else self.asked[index]
        if own is not None:
            return str(own)
        stored = self.store.provenance.get("prompt")
        style = self.loaded.collator.style
        if style is None:
            return stored or None
        return str(stored) if stored and style.placeholder in stored else None

    def _prompt(self, index: int, count: int) -> tuple[Int, Int]:
        stored = None if self.prompt is not None else self._stored_prompt(index)
        if stored is None:
            return self.layout.prompt(self._question(index), count)
        if len(stored[1]) != count:
            raise EngineError(
                f"sample {self.store.samples[index]!r} has {count} rows at {self.point} and {len(stored[1])} "
                "placeholders among its stored tokens; the model rearranges rows after this point, so it cannot be "
                "replayed from it"
            )
        return stored

    def _stored_prompt(self, index: int) -> tuple[Int, Int] | None:
        """Prompt and placeholders as an llm hook point's token columns hold them."""
        if self.point != "adapter_output":
            return None
        name = next((n for n, info in self.store.points.items() if info.stream == "llm"), None)
        if name is None:
            return None
        rows = self.store.rows(name)
        start, stop = rows.sample_range(index)
        tokens, modality = self._ids(rows, start, stop), rows.modality(start, stop)
        assert modality is not None
        slot = np.flatnonzero(modality > TEXT)
        if self.store.provenance.get("target"):
            text = next(
                (self.store.labels[n].values[index] for n in TEXT_LABELS if n in self.store.labels), None
            )
            tokens = tokens[: len(tokens) - len(self.layout.answer(str(text or "")))]
        return tokens, slot

    def _ids(self, rows: Any, start: int, stop: int) -> Int:
        return np.asarray(rows.token_ids(start, stop), dtype=np.int64)

    def _check_layout(self) -> None:
        """Compares one rebuilt prompt with the one that the processor made for the same sample."""
        told = self.store.provenance.get("layout")
        if not told or self.prompt is not None or not self.media or self.point != "adapter_output":
            return
        index = int(told["sample"])
        start, stop = self.rows.sample_range(index)
        if runs(self._prompt(index, stop - start)[0]) != told["runs"]:
            raise EngineError(
                f"the prompt of {self.store.path} cannot be rebuilt for {self.loaded.name}: its processor lays out "
                "placeholders in another way, or is another version; extract with an llm hook point too "
                "(--points adapter_output,llm_hidden_0 --rows tokens), whose token ids are stored"
            )


def _point(store: ActivationStore, point: str | None) -> str:
    """The hook point to replay from, which has token rows."""
    found = point or next((name for name in _POINTS if name in store.points), None)
    if found not in _POINTS:
        have = ", ".join(store.points)
        raise EngineError(
            f"{store.path} has no rows that enter the decoder{f' ({point!r} does not)' if point else ''}: it holds "
            f"{have}; extract with --points adapter_output --rows tokens (texts: --points text_embedding)"
        )
    if found not in store.points:
        raise EngineError(
            f"{store.path} has no {found}, only {', '.join(store.points)}; extract with --points {found} --rows tokens"
        )
    if store.points[found].rows == "pooled":
        raise EngineError(
            f"{found} of {store.path} has pooled rows only, replay feeds the decoder token rows; extract with "
            f"--points {found} --rows both (or tokens)"
        )
    return found
