"""Batches of a data set, ready for a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from .decoding import decoded

if TYPE_CHECKING:
    from modegap.engine.models import Inputs

    from .base import Dataset, Sample


def batches(
    data: Dataset,
    processor: Any,
    batch_size: int = 8,
    *,
    target: bool = False,
    prompt: str | None = None,
    workers: int = 0,
) -> Iterator[Inputs]:
    """The data set in order, `batch_size` samples at a time, tokenised and padded.

    Args:
        data: any data set.
        processor: a `LoadedModel`, or a transformers processor or tokenizer.
        batch_size: samples in a batch; the last one may be smaller.
        target: append the target tokens (see `LoadedModel.collate`).
        prompt: instead of the family's default prompt.
        workers: processes that decode media ahead of the model (see `decoded`).

    Raises:
        ValueError: a batch size below one.
        EngineError: a sample that the model cannot take; names it.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size {batch_size}; expected at least 1")
    from modegap.engine.models.collate import Collator

    collator = processor if hasattr(processor, "collate") else Collator(processor)
    as_text = collator.modality == "text" and data.modality != "text"
    if as_text:
        from .memory import TextView

        data = TextView(data)
    rate = getattr(getattr(collator.processor, "feature_extractor", None), "sampling_rate", None)
    samples: list[Sample] = []
    with closing(decoded(data, workers=workers, rate=rate)) as stream:
        for _, sample in stream:
            samples.append(sample)
            if len(samples) == batch_size:
                yield collator.collate(samples, target=target, prompt=prompt)
                samples = []
        if samples:
            yield collator.collate(samples, target=target, prompt=prompt)
