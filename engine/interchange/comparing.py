"""Whether a store that an import goes on with holds the rows of its source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, NotCommittedError, aligned_empty

from .content import PointRows
from .formats import Rows

_CHUNKS_FROM_AFAR = 8
"""Chunks of an array that are fetched to be compared, where the store is behind a URL."""


def check_same(store: ActivationStore, points: Mapping[str, PointRows], source: str) -> None:
    """Return if the rows that are stored already are those of the source.

    The plan tells widths, lengths, ids and labels, but not two runs of the same samples from each other, and rows of
    both must not meet in one store. Of a store behind a URL a few chunks of each array are compared, evenly spread.

    Raises:
        EngineError: they are not. DamagedChunkError: a chunk of the store fails its checksum.
    """
    for name, point in points.items():
        if point.tokens is not None:
            _check(store, name, "tokens", point.tokens, source)
        if point.pooled is not None:
            _check(store, name, "pooled", point.pooled, source)


def _check(
    store: ActivationStore, name: str, kind: Literal["tokens", "pooled"], given: Rows, source: str
) -> None:
    rows = store.rows(name, kind)
    chunks = np.flatnonzero(rows.committed)
    if "://" in str(store.path) and len(chunks) > _CHUNKS_FROM_AFAR:
        chunks = chunks[np.linspace(0, len(chunks) - 1, _CHUNKS_FROM_AFAR).astype(np.int64)]
    buffer = aligned_empty((rows.chunk_rows, rows.shape[1]), rows.dtype) if len(chunks) else None
    for chunk in chunks.tolist():
        try:
            start, stored, scale = rows.chunk(chunk, buffer)
        except NotCommittedError:
            continue  # its first sample ends in a chunk that is still to come
        equal = _equal(stored, scale, np.asarray(given[start : start + len(stored)]))
        if not equal.all():
            row = start + int(np.argmin(equal))
            sample = store.samples[int(rows.sample_of_row(row, row + 1)[0])]
            raise EngineError(
                f"{store.path} holds other {kind} rows of {name!r} than {source} (first in sample {sample!r}): it was "
                f"imported from something else, or the source has changed: choose another path, or remove the store"
            )


def _equal(stored: np.ndarray, scale: float, given: np.ndarray) -> np.ndarray:
    """Return bool [n]: which rows are what storing those of the source gives."""
    wide = given if given.dtype.itemsize < 4 else given.astype(np.float32)
    if scale == 1.0:
        with np.errstate(over="ignore"):
            other = stored != wide.astype(stored.dtype)
    else:
        # A chunk may have been rounded more than once where its scale grew: half a unit in the last place each time.
        true = wide.astype(np.float64)
        other = np.abs(stored.astype(np.float64) * scale - true) > np.abs(true) * 2.0**-10 + scale * 2.0**-24
    equal: np.ndarray = ~np.any(other, axis=1)
    return equal
