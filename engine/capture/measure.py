"""Tokenise first: how many rows every sample will have."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modegap.engine.datasets import MediaError, attempted
from modegap.engine.datasets.base import Dataset, Label, Sample
from modegap.engine.errors import EngineError
from modegap.engine.models.loaded import LoadedModel

from .feed import sampling_rate
from .lengths import StreamRule


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Token counts, int64 [samples] each; `frames` is -1 where the processor masks no media frames.

    Attributes:
        kept: index of each sample in the data set; the others could not be decoded.
        skipped: id to reason of those.
    """

    llm: NDArray[np.int64]
    placeholders: NDArray[np.int64]
    frames: NDArray[np.int64]
    frames_total: int
    text: NDArray[np.int64]
    texts: tuple[str, ...]
    prompts: tuple[str | None, ...]
    kept: tuple[int, ...]
    skipped: dict[str, str]

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
    workers: int = 0,
    skip_bad: bool = False,
    known_bad: Mapping[str, str] | None = None,
) -> Measured:
    """Counts the tokens of the first `count` samples; nothing runs on the model.

    Media are decoded once for it, except by image processors whose output has a fixed size: there samples
    with the same prompt have as many placeholders as the first of them, and nothing else is decoded unless
    bad media are to be found.

    Args:
        loaded: the model.
        data: the data set.
        count: how many of its samples.
        target: as in the capture.
        prompt: as in the capture.
        tick: called with the number of samples done.
        workers: processes that decode.
        skip_bad: leave out samples whose media cannot be decoded, or texts that are empty.
        known_bad: id and reason of samples that were left out before; they are not looked at again, and no
            others are looked for.

    Raises:
        MediaError: a sample that cannot be decoded, unless `skip_bad`; names it.
        EngineError: a sample that cannot be prepared, or none that can be decoded.
    """
    fixed = loaded.modality == "image" and data.modality == "image" and _fixed_size(loaded.processor)
    bad = dict(known_bad or {})
    wanted = [index for index in range(count) if data.ids[index] not in bad]
    known: dict[str | None, tuple[int, int]] = {}
    rows: list[tuple[int, int, int, int]] = []
    texts: list[str] = []
    prompts: list[str | None] = []
    kept, total = [], -1
    looked = skip_bad and known_bad is None
    with closing(_samples(data, wanted, fixed and not looked, workers, loaded)) as samples:
        for done, (index, sample) in enumerate(samples, 1):
            if isinstance(sample, MediaError):
                if not skip_bad:
                    raise sample
                bad[sample.sample] = sample.reason
                continue
            if skip_bad and data.modality == "text" and not sample.text.strip():
                bad[sample.id] = "it has no text"
                continue
            seen = known.get(sample.prompt) if fixed else None
            if seen is None:
                whole = data[index] if sample.media is None and data.modality != "text" else sample
                inputs = loaded.collator.collate([whole], target=target, prompt=prompt)
                answer = int(inputs.target_mask.sum())
                frames = inputs.frames
                total = total if frames is None else frames[1]
                seen = (int(inputs.attention.sum()) - answer, inputs.media_counts[0])
                known[sample.prompt] = seen
                rows.append((seen[0] + answer, seen[1], frames[0][0] if frames else -1, len(inputs.texts[0])))
            else:
                answer = loaded.collator.answer_length(sample) if target else 0
                rows.append((seen[0] + answer, seen[1], -1, loaded.collator.text_length(sample)))
            texts.append(sample.text)
            prompts.append(sample.prompt)
            kept.append(index)
            tick(done)
    if not kept:
        raise EngineError(f"none of the {count} samples of {data.name} can be decoded; check its files")
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 4).T
    return Measured(
        columns[0], columns[1], columns[2], total, columns[3], tuple(texts), tuple(prompts), tuple(kept), bad
    )


def _samples(
    data: Dataset, wanted: Sequence[int], bare: bool, workers: int, loaded: LoadedModel
) -> Generator[tuple[int, Sample | MediaError], None, None]:
    """The samples, undecoded where `bare` and the data set can give them so."""
    row: Callable[[int], Sample] = getattr(data, "row", data.__getitem__)
    if bare:
        yield from ((index, row(index)) for index in wanted)
    else:
        yield from attempted(data, wanted, workers=workers, rate=sampling_rate(loaded))


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
