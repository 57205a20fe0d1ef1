"""Data sets over samples that already exist: a list, and the text view of another data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from modegap.engine.errors import EngineError

from .base import Dataset, Label, Modality, Sample

ID_BYTES = 255


def check_ids(ids: Sequence[str], name: str) -> None:
    """Raises EngineError unless the ids are unique, not empty and at most 255 UTF-8 bytes each."""
    for index, sample_id in enumerate(ids):
        if not sample_id or len(sample_id.encode()) > ID_BYTES:
            raise EngineError(
                f"data set {name}: row {index} has the id {sample_id!r}; ids are 1 to {ID_BYTES} UTF-8 "
                "bytes: "
                "give an id column with shorter names"
            )
    twice = [sample_id for sample_id, times in Counter(ids).items() if times > 1]
    if twice:
        raise EngineError(
            f"data set {name}: the id {twice[0]!r} occurs {ids.count(twice[0])} times "
            f"({len(twice)} duplicated ids); give every sample its own id"
        )


class ListDataset:
    """A data set over samples in memory.

    Args:
        samples: at least one; ids unique; all with media or all without; the same label names on each.
        name: what provenance calls it.

    Raises:
        EngineError: any of these is not so; names the sample.
    """

    in_memory = True  # workers would only copy it

    def __init__(self, samples: Sequence[Sample], name: str = "list") -> None:
        """Checks every sample."""
        if not samples:
            raise EngineError(f"data set {name} is empty; give at least one sample")
        self.name = name
        self._samples = tuple(samples)
        self.ids: Sequence[str] = tuple(sample.id for sample in samples)
        check_ids(self.ids, name)
        self.modality: Modality = _modality(samples[0])
        for sample in samples:
            if _modality(sample) != self.modality:
                raise EngineError(
                    f"data set {name}: sample {sample.id!r} is {_modality(sample)}, the first one is "
                    f"{self.modality}; make one data set for each"
                )
            if sample.labels.keys() != samples[0].labels.keys():
                raise EngineError(
                    f"data set {name}: sample {sample.id!r} has the labels {sorted(sample.labels)}, the "
                    "first "
                    f"one {sorted(samples[0].labels)}; give None where a label is unknown"
                )

    def __len__(self) -> int:
        """Samples in the data set."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        return iter(self._samples)

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns, each as long as the data set."""
        names = self._samples[0].labels
        return {name: [sample.labels[name] for sample in self._samples] for name in names}


class TextView:
    """The text of another data set under the same ids and labels: the text law's side of a comparison.

    Media and prompts are dropped (a text baseline reads the raw transcript or caption). Where the data set
    has a method `row(index) -> Sample` that leaves media undecoded, nothing is decoded.
    """

    modality: Modality = "text"

    def __init__(self, source: Dataset) -> None:
        """Shows `source`."""
        self.name = source.name
        self.ids: Sequence[str] = source.ids
        self._source = source
        self._row: Callable[[int], Sample] = getattr(source, "row", source.__getitem__)

    def __len__(self) -> int:
        """Samples in the data set."""
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`."""
        sample = self._row(index)
        return Sample(sample.id, sample.text, labels=sample.labels)

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        return (self[index] for index in range(len(self)))

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns of the data set it shows."""
        return self._source.labels()


def as_text(data: Dataset) -> Dataset:
    """The data set's texts without its media; a text data set is returned as it is."""
    return data if data.modality == "text" else TextView(data)


def _modality(sample: Sample) -> Modality:
    if sample.media is None:
        return "text"
    return "audio" if isinstance(sample.media, tuple) else "image"
