"""Batches of a data set, ready for a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegap.engine.models import Inputs

    from .base import Dataset


def batches(
    data: Dataset,
    processor: Any,
    batch_size: int = 8,
    *,
    target: bool = False,
    prompt: str | None = None,
) -> Iterator[Inputs]:
    """The data set in order, `batch_size` samples at a time, tokenised and padded.

    Args:
        data: any data set.
        processor: a `LoadedModel`, or a transformers processor or tokenizer.
        batch_size: samples in a batch; the last one may be smaller.
        target: append the target tokens (see `LoadedModel.collate`).
        prompt: instead of the family's default prompt.

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
    for start in range(0, len(data), batch_size):
        samples = [data[index] for index in range(start, min(start + batch_size, len(data)))]
        yield collator.collate(samples, target=target, prompt=prompt)
