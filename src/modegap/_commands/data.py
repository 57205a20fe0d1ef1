"""The options of every command that takes a DATASET."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modegap.engine.datasets import Dataset


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How the data set is read; for a command whose own config has a limit.

    Attributes:
        root: folder of a published data set; for a table, what file names are relative to.
        split: of a data set that has several.
        media: column of images or audio.
        text: column (or, of a store, label) of transcripts, captions or answers.
        labels: label columns to keep; all unless given.
    """

    root: str | None = None
    split: str | None = None
    media: str | None = None
    text: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class LimitedDataOptions(DataOptions):
    """How the data set is read.

    Attributes:
        root: folder of a published data set; for a table, what file names are relative to.
        split: of a data set that has several.
        media: column of images or audio.
        text: column (or, of a store, label) of transcripts, captions or answers.
        labels: label columns to keep; all unless given.
        limit: only the first so many samples.
    """

    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a limit below one."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"got limit {self.limit}; expected at least 1, or none for all samples")


def open_data(spec: str, options: DataOptions, *, keep_missing: bool = False) -> Dataset:
    """The data set a command was given; `keep_missing` where it will leave out bad samples by itself.

    Raises:
        EngineError: nothing is there, or an option does not fit; the message names it.
    """
    from modegap._facade import unsifted_dataset

    return unsifted_dataset(spec, keep_missing=keep_missing, **asdict(options))
