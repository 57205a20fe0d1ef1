"""Samples with their media, in the order asked, decoded ahead."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from modegap.engine.datasets import Dataset, Sample


def decoded(data: Dataset, indices: Sequence[int], *, workers: int = 0) -> Generator[Sample, None, None]:
    """The samples of `indices` in that order."""
    for index in indices:
        yield data[index]
