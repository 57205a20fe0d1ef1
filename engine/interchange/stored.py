"""A store as a source: to change its profile, its dtype, or which points it has."""

from __future__ import annotations

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores import ActivationStore, RowArray

from .content import Content
from .formats import IDS, LENGTH, MODALITY, POOLED, Rows


def opened_store(path: str) -> Content:
    """Return the true values of all rows of a complete store, checked while they are read.

    Raises:
        EngineError: the store is incomplete. StoreError: it cannot be read.
    """
    store = ActivationStore.open(path)
    if store.n_complete < len(store.samples):
        raise EngineError(
            f"{store.n_complete} of {len(store.samples)} samples of {path} are complete: resume it first"
        )
    arrays: dict[str, Rows] = {}
    for name, info in store.points.items():
        if info.rows != "tokens":
            arrays[name + POOLED if info.rows == "both" else name] = TrueRows(store.rows(name, "pooled"))
        if info.rows != "pooled":
            rows = store.rows(name)
            lengths = rows.lengths()
            assert lengths is not None
            arrays |= {name: TrueRows(rows), name + LENGTH: lengths}
            arrays |= {name + IDS: Column(rows, "ids"), name + MODALITY: Column(rows, "modality")}
    streams = {name: info.stream for name, info in store.points.items() if info.stream is not None}
    return Content(
        arrays, store.provenance, store.samples, {**store.labels}, streams, points=tuple(store.points)
    )


class TrueRows:
    """Stored values times their scales."""

    def __init__(self, rows: RowArray) -> None:
        """Find out whether any chunk is scaled, in which case the values need float32."""
        self._rows = rows
        self.shape: tuple[int, ...] = rows.shape
        scaled = any(rows.scale(chunk) != 1.0 for chunk in range(rows.n_chunks))
        self.dtype = np.dtype(np.float32) if scaled else rows.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows."""
        start, stop, _ = rows.indices(self.shape[0])
        return self._rows.read(start, stop, np.empty((stop - start, self.shape[1]), self.dtype))


class Column:
    """Token ids (int32) or modality (uint8) of token rows."""

    def __init__(self, rows: RowArray, kind: str) -> None:
        """`kind` is "ids" or "modality"."""
        self._rows, self._kind = rows, kind
        self.shape: tuple[int, ...] = (rows.shape[0],)
        self.dtype = np.dtype(np.int32 if kind == "ids" else np.uint8)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows."""
        start, stop, _ = rows.indices(self.shape[0])
        read = self._rows.token_ids if self._kind == "ids" else self._rows.modality
        found = read(start, stop)
        assert found is not None
        return found
