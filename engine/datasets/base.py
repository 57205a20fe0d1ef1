"""What a data set is to modegap: an indexable sequence of `Sample`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Modality = Literal["image", "audio", "text"]
Label = str | int | float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: media, target text and labels.

    Attributes:
        id: unique within the data set, at most 255 UTF-8 bytes.
        text: the target `y` (transcript, caption or answer); for a text baseline also the input.
        media: a PIL image, or `(waveform float32 [samples], sampling rate in Hz)`; None for text.
        prompt: overrides the model's default prompt `c` for this sample.
        labels: label name to value; str is categorical or free text, int and float are numbers.
    """

    id: str
    text: str
    media: Any = None
    prompt: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)


@runtime_checkable
class Dataset(Protocol):
    """A finite, indexable, deterministic sequence of samples (decode media lazily in `__getitem__`)."""

    name: str
    modality: Modality
    ids: Sequence[str]

    def __len__(self) -> int:
        """Samples in the data set."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its media decoded."""
        ...

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order."""
        ...

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns, each as long as the data set; known without decoding media."""
        ...
