"""How large media are, without decoding them: what batches of similar length are made by."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from .base import Dataset
from .media import size_of

# Headers are read over network disks too, where waiting is all the work.
_THREADS = 8


def media_sizes(data: Dataset, indices: Sequence[int] | None = None) -> NDArray[np.float64]:
    """float64 [samples]: seconds of audio, or pixels of an image, or 0 for text; NaN where media are bad.

    Read from the headers where the data set says where its media lie; otherwise samples are decoded.

    Args:
        data: any data set.
        indices: which samples; all unless given.
    """
    wanted = range(len(data)) if indices is None else indices
    if data.modality == "text":
        return np.zeros(len(wanted))
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.fromiter(pool.map(lambda index: _size(data, index), wanted), np.float64, len(wanted))


def _size(data: Dataset, index: int) -> float:
    of = getattr(data, "source", None)
    found = None if of is None else of(index)
    if found is not None:
        return size_of(found[0], data.modality)
    media = data[index].media
    return len(media[0]) / media[1] if isinstance(media, tuple) else float(media.width * media.height)
