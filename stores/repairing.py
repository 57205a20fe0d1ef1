"""Mending a store: what follows from what is left is written anew, the rest is withdrawn and made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .buffers import aligned_empty, bytes_of
from .checksum import combine, crc32c
from .chunkfiles import file_bytes, read_block
from .commits import CommitLog, CommitRecord
from .damage import Damage
from .durable import sync_folder
from .errors import StoreBusyError, StoreError, disk_error
from .handles import size_of
from .layout import StoredArray
from .metadata import mend_metadata
from .owner import claimed
from .ranges import samples_holding
from .remote import Place, RemotePath
from .store import ActivationStore
from .values import FP16_MAX, row_absmax
from .verification import Progress, VerifyReport, verify


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What `repair` did.

    Attributes:
        restored: pieces that are sound again: metadata written anew, commit records made from their chunks.
        withdrawn: chunks (or shards) whose rows are lost; the next writer makes them, and only them, again.
    """

    restored: list[Damage]
    withdrawn: list[Damage]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self)


def repair(
    store: ActivationStore,
    report: VerifyReport | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> RepairReport:
    """Restore what follows from the rest of the store, and withdraw the commits of damaged chunks.

    Restored are every `zarr.json`, row ranges, and commit records that are damaged (with `rebuild` also those
    that are missing, say after `_commit` was lost) whose chunk is sound. Such a chunk must match the checksum
    behind it, and its scale must follow from its values: a chunk of fp16 whose largest is below 32752 is not
    scaled. The record's `absmax` is then that of the stored values. Sound chunks are not touched.

    Args:
        store: open with mode="r+".
        report: of `verify`, run again unless given.
        rebuild: also make records for sound chunks that have none.
        progress: as `verify`.
        threads: as `verify`.

    Raises:
        StoreBusyError: a writer is at work.
        StoreError: the store is open for reading only, the disk fails, or sample ids or labels are lost; all
            else is repaired then, and resuming the run that wrote the store rewrites these.
    """
    if store.mode != "r+":
        raise StoreError(f"{store.path} is open for reading only: open it with mode='r+'")
    root = store.path
    with claimed(root, 0, store.header.n_samples):
        found = report or verify(store, progress=progress, threads=threads)
        metadata = [piece for piece in found.damaged if piece.kind == "metadata"]
        try:
            restored, lost = mend_metadata(root, store.header, metadata)
        except OSError as error:
            raise disk_error(error, root, 2**20) from error
        if restored and found.chunks_committed == 0:
            # Row ranges that were damaged kept the chunks from being checked.
            found = verify(store, progress=progress, threads=threads)
        withdrawn: list[Damage] = []
        arrays: dict[tuple[str, str], StoredArray] = {
            (array.kind, array.owner): array for array in store.arrays
        }
        for piece in found.damaged:
            if piece.kind != "metadata":
                array = arrays[piece.kind, piece.point]
                store.commits(array).withdraw(piece.chunk)
                again = piece.reason == "its commit record is damaged" and _recommit(
                    store, array, piece.chunk
                )
                (restored if again else withdrawn).append(piece)
        if rebuild:
            restored += [piece for array in store.arrays for piece in _uncommitted(store, array)]
    if lost:
        raise StoreError(
            f"{lost[0]}; nothing else in the store says what it was: run what wrote the store again with the "
            f"same settings (it rewrites this file), or restore the file from a copy"
        )
    return RepairReport(restored, withdrawn)


def _uncommitted(store: ActivationStore, array: StoredArray) -> Sequence[Damage]:
    """Commit the sound chunks that have no record; return them."""
    made = []
    for chunk in np.flatnonzero(~store.commits(array).committed).tolist():
        if array.spec.chunk_file(store.path, chunk).is_file() and _recommit(store, array, chunk):
            rows = array.spec.rows_of(chunk)
            samples = samples_holding(store.bounds(array), *rows)
            made.append(
                Damage(array.owner, array.kind, chunk, rows, samples, "its commit record was missing")
            )
    return made


def _recommit(store: ActivationStore, array: StoredArray, chunk: int) -> bool:
    """Commit a chunk that has no record, if its file proves what the record must be; return whether it did.

    Raises:
        StoreError: the disk is full, read-only or broken.
    """
    log: CommitLog = store.commits(array)
    record = record_of(store.path, array, store.bounds(array), chunk)
    if record is None:
        return False
    folder = log.folder
    try:
        if not isinstance(folder, RemotePath):
            folder.mkdir(parents=True, exist_ok=True)
        log.publish(chunk, record)
        if not isinstance(folder, RemotePath):
            sync_folder(folder)
    except StoreBusyError:
        return False
    except OSError as error:
        raise disk_error(error, folder, 4096) from error
    return True


def record_of(root: Place, array: StoredArray, bounds: np.ndarray, chunk: int) -> CommitRecord | None:
    """Return the record of a chunk whose file alone proves it, else None."""
    spec = array.spec
    file = spec.chunk_file(root, chunk)
    start, stop = spec.rows_of(chunk)
    block = aligned_empty((spec.block_rows, *spec.shape[1:]), np.dtype(spec.dtype))
    content = bytes_of(block)
    inner: list[int] = []
    absmax = 0.0
    whole = 0
    for index in range(start // spec.block_rows, -(-stop // spec.block_rows)):
        if read_block(file, spec, index, content, None) is not None:
            return None
        first, last = spec.rows_of_block(index)
        absmax = max(absmax, _absmax(block[: last - first]))
        found = crc32c(content)
        whole = combine(whole, found, len(content)) if inner else found
        inner.append(found)
    size = size_of(file)
    proven = np.isfinite(absmax) and (spec.dtype != "float16" or absmax < FP16_MAX / 2)
    if not proven or file_bytes(spec, chunk) not in (None, size):
        return None
    samples = samples_holding(bounds, start, stop)
    return CommitRecord(
        stop - start, size, whole, samples, absmax, inner=tuple(inner) if spec.inner_rows else ()
    )


def _absmax(rows: np.ndarray) -> float:
    if rows.dtype.kind == "f":
        return float(row_absmax(rows).max(initial=0.0))
    return float(np.max(np.abs(rows.astype(np.int64)), initial=0))
