"""The 1,797 scans of handwritten digits (UCI) that scikit-learn ships, and their split."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]
TEST_SCANS = 360


@lru_cache(maxsize=1)
def load_scans() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All scans, uint8 [1797, 8, 8] with ink 0..16, and their digits [1797]; read-only arrays."""
    from sklearn.datasets import load_digits  # about a second to import: only when scans are needed

    bunch = load_digits()
    scans = bunch.images.astype(np.uint8)
    digits = bunch.target.astype(np.int64)
    scans.flags.writeable = digits.flags.writeable = False
    return scans, digits


def _order(index: int) -> bytes:
    return hashlib.sha256(f"scan/{index}".encode()).digest()


@lru_cache(maxsize=2)
def split_indices(split: Split) -> tuple[int, ...]:
    """Scan indices of a split in a fixed shuffled order; each digit gives its share of the 360 test scans.

    The shuffle is by SHA-256 of the index, so no library version can move a scan across the split.
    """
    if split not in get_args(Split):
        raise ValueError(f"got split {split!r}; expected one of {', '.join(get_args(Split))}")
    digits = load_scans()[1]
    counts = np.bincount(digits, minlength=10)
    quota = counts * TEST_SCANS / counts.sum()
    share = np.floor(quota).astype(int)
    # Largest remainder: the classes that lose most by rounding down get the scans still missing.
    for digit in np.argsort(share - quota, kind="stable")[: TEST_SCANS - share.sum()]:
        share[digit] += 1
    chosen: list[int] = []
    for digit in range(10):
        ordered = sorted(np.flatnonzero(digits == digit).tolist(), key=_order)
        chosen += ordered[: share[digit]] if split == "test" else ordered[share[digit] :]
    return tuple(sorted(chosen, key=_order))
