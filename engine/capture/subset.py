"""A data set without the samples that were left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from modegap.engine.datasets import Dataset, Label, Sample
from modegap.engine.datasets.base import Modality


class Subset:
    """Some samples of another data set, in its order; decodes what that one decodes."""

    def __init__(self, source: Dataset, kept: Sequence[int]) -> None:
        """Shows the samples `kept` of `source`."""
        self.name = source.name
        self.modality: Modality = source.modality
        self._source, self._kept = source, list(kept)
        self.ids: Sequence[str] = tuple(source.ids[index] for index in self._kept)

    def __len__(self) -> int:
        """Samples kept."""
        return len(self._kept)

    def row(self, index: int) -> Sample:
        """Sample `index`, undecoded where the data set can give it so."""
        read = getattr(self._source, "row", self._source.__getitem__)
        sample: Sample = read(self._kept[index])
        return sample

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        return self._source[self._kept[index]]

    def __iter__(self) -> Iterator[Sample]:
        """The samples kept, in order."""
        return (self[index] for index in range(len(self)))

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns of the samples kept."""
        return {
            name: [values[index] for index in self._kept] for name, values in self._source.labels().items()
        }
