"""Some of a data set's samples: the first so many, one fold, or all but the bad ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from modegap.engine.errors import EngineError

from .base import Dataset, Label, Modality, Sample

if TYPE_CHECKING:
    from .media import Source


class Subset:
    """Samples `indices` of another data set, in that order, under their own ids; decodes nothing by itself.

    Args:
        source: any data set.
        indices: at least one, each at most once.

    Raises:
        EngineError: no indices.
        ValueError: an index that is out of range or occurs twice.
    """

    def __init__(self, source: Dataset, indices: Sequence[int]) -> None:
        """Checks the indices."""
        if not len(indices):
            raise EngineError(f"no sample of data set {source.name} is left; nothing to capture")
        if len(set(indices)) < len(indices) or min(indices) < 0 or max(indices) >= len(source):
            raise ValueError(f"got indices beyond 0 to {len(source) - 1}, or one of them twice")
        self.name = source.name
        self.modality: Modality = source.modality
        self.ids: Sequence[str] = tuple(source.ids[index] for index in indices)
        self.in_memory: bool = getattr(source, "in_memory", False)
        self._source, self._indices = source, tuple(indices)

    def __len__(self) -> int:
        """Samples in the data set."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its media decoded."""
        return self._source[self._indices[index]]

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        return (self[index] for index in range(len(self)))

    def row(self, index: int) -> Sample:
        """The sample without its media, where the data set can leave them undecoded."""
        row = getattr(self._source, "row", self._source.__getitem__)
        sample: Sample = row(self._indices[index])
        return sample

    def source(self, index: int) -> tuple[Source, str] | None:
        """Where the sample's media lie; None where the data set does not say."""
        of = getattr(self._source, "source", None)
        found: tuple[Source, str] | None = None if of is None else of(self._indices[index])
        return found

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns, each as long as the subset."""
        return {
            name: [values[index] for index in self._indices] for name, values in self._source.labels().items()
        }


def limited(data: Dataset, limit: int | None) -> Dataset:
    """The first `limit` samples; the data set itself where it has no more, or without a limit.

    Raises:
        ValueError: a limit below one.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"got limit {limit}; expected at least 1, or none for all samples")
    return data if limit is None or limit >= len(data) else Subset(data, range(limit))
