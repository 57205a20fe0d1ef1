"""A data set that leaves a file for each sample it was asked for, fails at 5 and ends its process at 7."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from modegap.engine.datasets import Sample


class Counted:
    """Samples without media to speak of."""

    name, modality = "counted", "image"

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.ids = folder, [str(i) for i in range(count)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        (self.folder / str(index)).touch()
        if index == 5:
            raise KeyError("five")
        if index == 7:
            os._exit(3)
        return Sample(self.ids[index], "", "media")

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> Mapping[str, Sequence[str]]:
        return {}
