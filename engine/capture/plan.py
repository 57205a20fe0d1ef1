"""Tokenise first: how many rows every sample will have, and which samples share a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modegap.engine.datasets.base import Dataset, Label, Sample
from modegap.engine.models.loaded import LoadedModel

from .lengths import StreamRule

# Samples are reordered by length within this many batches only, since their rows wait in memory for their
# turn.
WINDOW_BATCHES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Token counts, int64 [samples] each; `frames` is -1 where the processor masks no media frames."""

    llm: NDArray[np.int64]
    placeholders: NDArray[np.int64]
    frames: NDArray[np.int64]
    frames_total: int
    text: NDArray[np.int64]
    texts: tuple[str, ...]
    prompts: tuple[str | None, ...]

    def lengths(self, stream: str, rule: StreamRule | None) -> NDArray[np.int64]:
        """Rows of every sample in a stream."""
        if stream == "llm":
            return self.llm
        if stream == "text" or rule is None:
            return self.text
        frames = None if self.frames_total < 0 else (self.frames.tolist(), self.frames_total)
        return np.asarray(rule.lengths(self.placeholders.tolist(), frames), dtype=np.int64)


def measure(
    loaded: LoadedModel,
    data: Dataset,
    count: int,
    *,
    target: bool,
    prompt: str | None,
    tick: Callable[[int], None],
) -> Measured:
    """Counts the tokens of the first `count` samples; nothing runs on the model.

    Media are decoded once for it, except by image processors whose output has a fixed size: there samples
    with the same prompt have as many placeholders as the first of them.

    Raises:
        EngineError: a sample that cannot be decoded or prepared; names it.
    """
    row: Callable[[int], Sample] = getattr(data, "row", data.__getitem__)
    fixed = loaded.modality == "image" and data.modality == "image" and _fixed_size(loaded.processor)
    known: dict[str | None, tuple[int, int]] = {}
    columns = np.zeros((4, count), dtype=np.int64)
    texts: list[str] = []
    prompts: list[str | None] = []
    total = -1
    for index in range(count):
        sample = row(index) if fixed else data[index]
        seen = known.get(sample.prompt) if fixed else None
        if seen is None:
            whole = data[index] if fixed else sample
            inputs = loaded.collator.collate([whole], target=target, prompt=prompt)
            answer = int(inputs.target_mask.sum())
            frames = inputs.frames
            total = total if frames is None else frames[1]
            seen = (int(inputs.attention.sum()) - answer, inputs.media_counts[0])
            known[sample.prompt] = seen
            columns[:, index] = (
                seen[0] + answer,
                seen[1],
                frames[0][0] if frames else -1,
                len(inputs.texts[0]),
            )
        else:
            answer = loaded.collator.answer_length(sample) if target else 0
            columns[:, index] = (seen[0] + answer, seen[1], -1, loaded.collator.text_length(sample))
        texts.append(sample.text)
        prompts.append(sample.prompt)
        tick(index + 1)
    return Measured(columns[0], columns[1], columns[2], total, columns[3], tuple(texts), tuple(prompts))


@dataclass(frozen=True, slots=True)
class Window:
    """Samples `start` to `stop` (exclusive) and the batches, lists of sample indices, they run in."""

    start: int
    stop: int
    batches: tuple[tuple[int, ...], ...]


def schedule(lengths: NDArray[np.int64] | None, count: int, batch_size: int) -> Iterator[Window]:
    """Windows in data set order; inside one, batches of samples of similar length, the longest first.

    It depends on its arguments only: a resumed run computes the same batches and so the same bytes. The
    longest first makes a window's memory use known at its start.
    """
    size = batch_size * WINDOW_BATCHES
    for start in range(0, count, size):
        members = list(range(start, min(start + size, count)))
        if lengths is not None:
            members.sort(key=lambda index: (-int(lengths[index]), index))
        batches = tuple(tuple(members[at : at + batch_size]) for at in range(0, len(members), batch_size))
        yield Window(start, start + len(members), batches)


def labels_of(
    data: Dataset, count: int, texts: Sequence[str], prompts: Sequence[str | None] = ()
) -> dict[str, list[Label]]:
    """The data set's label columns, its texts (`text`) and the prompts of samples that bring one (`prompt`).

    All are cut to `count`; a label of the same name wins.
    """
    columns: Mapping[str, Sequence[Label]] = data.labels()
    found = {name: list(values[:count]) for name, values in columns.items()}
    if any(texts):
        found.setdefault("text", list(texts))
    if any(prompt is not None for prompt in prompts):
        found.setdefault("prompt", list(prompts))
    return found


def _fixed_size(processor: Any) -> bool:
    """Whether the image processor puts out one size, by a crop or a given height and width."""
    images = getattr(processor, "image_processor", None)
    if getattr(images, "do_image_splitting", False) or getattr(images, "image_grid_pinpoints", None):
        return False
    crop = getattr(images, "crop_size", None)
    if getattr(images, "do_center_crop", False) and _height_width(crop):
        return True
    return bool(getattr(images, "do_resize", False)) and _height_width(getattr(images, "size", None))


def _height_width(size: Any) -> bool:
    get = size.get if hasattr(size, "get") else lambda key: getattr(size, key, None)
    return size is not None and get("height") is not None and get("width") is not None
