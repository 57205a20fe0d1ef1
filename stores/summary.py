"""What a store holds, in numbers."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import unreadable
from .plan import PointInfo
from .remote import RemotePath
from .store import ActivationStore

_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """The rows of one point and kind.

    Attributes:
        point, kind, dtype: which rows, and how they are stored.
        shape: planned rows and width.
        chunk_rows: rows a chunk.
        chunks: chunks planned; `chunks_committed` of them are stored.
        rows_committed: rows in committed chunks.
        absmax: largest absolute true value stored, None if nothing is.
        overflow: stored values beyond fp16's 65504, kept in scaled chunks.
        max_exponent: largest scale exponent of a chunk; 0 means no chunk is scaled.
    """

    point: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int
    chunks: int
    chunks_committed: int
    rows_committed: int
    absmax: float | None
    overflow: int
    max_exponent: int


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """A label column: kind, missing values and (for a category) how many distinct values."""

    kind: str
    missing: int
    categories: int


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What `info` found.

    Attributes:
        bytes_on_disk: size of all files of the store.
        ratio: bytes the committed rows would take in float32, over `bytes_on_disk`; near 2 for fp16.
    """

    path: str
    schema_version: int
    profile: str
    plan_hash: str
    content_hash: str
    samples: int
    complete_samples: int
    points: dict[str, PointInfo]
    arrays: list[ArrayInfo]
    labels: dict[str, LabelInfo]
    provenance: dict[str, Any]
    bytes_on_disk: int
    ratio: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return asdict(self)


def info(store: ActivationStore) -> StoreInfo:
    """Return shapes, progress, size, labels and provenance of a store.

    Raises:
        DamagedChunkError: a commit record or a label is damaged. StoreError: a folder may not be read.
    """
    arrays = []
    float32_bytes = 0
    for array in store.arrays:
        if array.kind not in ("tokens", "pooled"):
            continue
        log, spec = store.commits(array), array.spec
        records = [log.record(chunk) for chunk in np.flatnonzero(log.committed).tolist()]
        rows = sum(record.rows for record in records)
        float32_bytes += rows * spec.shape[1] * _FLOAT32
        arrays.append(
            ArrayInfo(
                point=array.owner,
                kind=array.kind,
                dtype=spec.dtype,
                shape=spec.shape,
                chunk_rows=spec.chunk_rows,
                chunks=spec.n_chunks,
                chunks_committed=len(records),
                rows_committed=rows,
                absmax=max((record.absmax for record in records), default=None),
                overflow=sum(record.overflow for record in records),
                max_exponent=max((record.exponent for record in records), default=0),
            )
        )
    labels = {
        name: LabelInfo(
            column.kind, column.n_missing, len(column.categories) if column.kind == "category" else 0
        )
        for name, column in store.labels.items()
    }
    place = store.path
    try:
        size = place.bytes_below() if isinstance(place, RemotePath) else _bytes_below(str(place))
    except OSError as error:
        store.check_there()
        raise unreadable(error.filename or place, error) from error
    return StoreInfo(
        path=str(store.path),
        schema_version=store.schema_version,
        profile=store.header.profile,
        plan_hash=store.plan_hash,
        content_hash=store.content_hash(),
        samples=len(store.samples),
        complete_samples=store.n_complete,
        points=store.points,
        arrays=arrays,
        labels=labels,
        provenance=store.provenance,
        bytes_on_disk=size,
        ratio=float32_bytes / size,
    )


def _bytes_below(folder: str) -> int:
    """Return the bytes of all files; one that a writer removes meanwhile counts or not."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    total += _bytes_below(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total
