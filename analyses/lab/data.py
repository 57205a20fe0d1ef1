"""The lab's data set: digit scans on canvases; captions name the digit, labels all the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from modegap.engine.datasets.base import Label, Modality, Sample

from .canvas import ATTRIBUTES, Looks, keyed_looks, render
from .grammar import DIGITS, caption
from .scans import Split, load_scans, split_indices


class LabDataset:
    """`size` samples of a split, drawn lazily; sample i is the same on every machine.

    A scan's first image is pass 0; a `size` above the number of scans (360 test, 1,437 train) goes round
    again with fresh attributes, pass 1, 2, ... An id names split, scan, pass and, unless 0, the seed of the
    attributes: `test-00012-r1`, `test-00012-r1-s5`.

    Labels: `digit`, `color`, `place`, `size`, `background` (categorical) and the numbers `size_px` (side
    of the digit's box), `x`, `y` (its centre, pixels from the left and the top) and `scan` (index in
    scikit-learn's `load_digits`). The text names the digit only.
    """

    name = "lab"
    modality: Modality = "image"

    def __init__(self, split: Split = "test", size: int | None = None, seed: int = 0) -> None:
        """Raises ValueError for an unknown split or a size below 1."""
        scans = split_indices(split)
        if size is not None and size < 1:
            raise ValueError(f"got size {size}; expected at least 1, or None for all {len(scans)} scans")
        total = len(scans) if size is None else size
        suffix = f"-s{seed}" if seed else ""
        self.split, self.seed = split, seed
        self._scans: list[int] = [scans[row % len(scans)] for row in range(total)]
        self.ids: Sequence[str] = tuple(
            f"{split}-{scan:05d}-r{row // len(scans)}{suffix}" for row, scan in enumerate(self._scans)
        )

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._scans)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, its image drawn now."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"got index {index}; the data set has {len(self)} samples")
        index %= len(self)
        looks = self._looks(index)
        scan = self._scans[index]
        pixels = render(load_scans()[0][scan : scan + 1], looks)[0]
        row = self._labels(index, looks)
        digit = int(load_scans()[1][scan])
        return Sample(self.ids[index], caption(digit, self.ids[index]), Image.fromarray(pixels), labels=row)

    def __iter__(self) -> Iterator[Sample]:
        """Samples in the order of `ids`."""
        return (self[index] for index in range(len(self)))

    def labels(self) -> Mapping[str, Sequence[Label]]:
        """Label columns, each as long as the data set; draws nothing."""
        rows = [self._labels(index, self._looks(index)) for index in range(len(self))]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _looks(self, index: int) -> Looks:
        return keyed_looks(f"{self.seed}/{self.ids[index]}")

    def _labels(self, index: int, looks: Looks) -> dict[str, Label]:
        scan = self._scans[index]
        row: dict[str, Label] = {"digit": DIGITS[int(load_scans()[1][scan])]}
        for name, values in ATTRIBUTES.items():
            row[name] = values[int(getattr(looks, name)[0])]
        x, y = (int(value) for value in looks.centers()[0])
        row.update(size_px=int(looks.sides()[0]), x=x, y=y, scan=scan)
        return row


def sheet(dataset: Sequence[Sample] | LabDataset, columns: int = 16, zoom: int = 2) -> Image.Image:
    """All images of a data set on one sheet, for looking at."""
    tiles = [np.asarray(sample.media) for sample in dataset]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    page = np.concatenate(rows, axis=0)
    return Image.fromarray(page.repeat(zoom, axis=0).repeat(zoom, axis=1))
