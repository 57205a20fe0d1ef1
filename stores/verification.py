"""Checking every committed byte of a store, and withdrawing what is damaged so that it is made again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .buffers import aligned_empty, bytes_of
from .checksum import TRAILER
from .chunkfiles import has_its_size, read_block
from .errors import DamagedChunkError, StoreError
from .handles import size_of
from .labels import digest, read_label, starts_of
from .layout import StoredArray
from .origin import canonical_json, sha256
from .ranges import samples_holding
from .store import ActivationStore
from .zarrjson import read_column

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged piece.

    Attributes:
        point: its point, stream (kind "ids" and "modality") or column (kind "metadata").
        kind: "tokens", "pooled", "ids", "modality" or "metadata".
        chunk: index of the chunk (or shard); 0 for metadata.
        rows: first row and the one after the last; in a shard, those of its first damaged chunk.
        samples: first sample with one of these rows and the one after the last.
        reason: what is wrong.
    """

    point: str
    kind: str
    chunk: int
    rows: tuple[int, int]
    samples: tuple[int, int]
    reason: str

    def __str__(self) -> str:
        """Return the damage in one line."""
        return (
            f"{self.kind} {self.point!r} chunk {self.chunk} (rows {self.rows[0]} to {self.rows[1] - 1}, "
            f"samples {self.samples[0]} to {self.samples[1] - 1}): {self.reason}"
        )


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found: committed chunks (or shards) checked, of how many, their bytes, the damage."""

    ok: bool
    chunks_checked: int
    chunks_committed: int
    bytes: int
    damaged: list[Damage]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self)


def verify(
    store: ActivationStore, *, fraction: float = 1.0, progress: Progress | None = None, threads: int = 2
) -> VerifyReport:
    """Check sizes and checksums of committed chunks, and all metadata columns.

    Each chunk's content must match the checksum behind it in its file and the one in its commit record. A
    `fraction` below 1 checks that share of the chunks of each array, evenly spread, at least one.
    `progress(done, total)` is called in bytes. Memory: one chunk a thread.

    Raises:
        ValueError: fraction not in (0, 1], or threads below 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    store.refresh()
    damaged = list(_damaged_metadata(store))
    if any(piece.point.startswith("points/") for piece in damaged):
        # Without row ranges no chunk can be told from another's samples; the metadata come first.
        return VerifyReport(False, 0, 0, 0, damaged)
    jobs = []
    committed = 0
    for array in store.arrays:
        chunks = np.flatnonzero(store.commits(array).committed)
        committed += len(chunks)
        count = min(len(chunks), int(np.ceil(fraction * len(chunks))))
        picked = chunks[np.arange(count) * len(chunks) // max(count, 1)]
        jobs += [(array, int(chunk)) for chunk in picked]
    total = sum(array.spec.chunk_bytes + TRAILER for array, _ in jobs)
    done = 0
    buffers = threading.local()

    def check(job: tuple[StoredArray, int]) -> Damage | None:
        return _check_chunk(store, *job, buffers)

    with ThreadPoolExecutor(threads) as pool:
        for (array, _), damage in zip(jobs, pool.map(check, jobs), strict=True):
            done += array.spec.chunk_bytes + TRAILER
            if damage is not None:
                damaged.append(damage)
            if progress is not None:
                progress(done, total)
    return VerifyReport(not damaged, len(jobs), committed, total, damaged)


def _check_chunk(
    store: ActivationStore, array: StoredArray, chunk: int, buffers: threading.local
) -> Damage | None:
    spec, log = array.spec, store.commits(array)
    scratch: np.ndarray | None = getattr(buffers, "scratch", None)
    if scratch is None or scratch.nbytes < spec.block_bytes:
        scratch = buffers.scratch = aligned_empty(spec.block_bytes)
    content, file = bytes_of(scratch)[: spec.block_bytes], spec.chunk_file(store.path, chunk)
    start, stop = spec.rows_of(chunk)
    reason = None
    try:
        record = log.record(chunk)
    except DamagedChunkError:
        reason = "its commit record is damaged"
    else:
        for block in range(start // spec.block_rows, -(-stop // spec.block_rows)):
            reason = read_block(file, spec, block, content, record)
            if reason is not None:
                start, stop = spec.rows_of_block(block)
                break
        else:
            if not has_its_size(spec, store.path, chunk, log):
                reason = f"its file has {size_of(file)} bytes, expected {record.bytes}"
    if reason is None:
        return None
    samples = samples_holding(store.bounds(array), start, stop)
    return Damage(array.owner, array.kind, chunk, (start, stop), samples, reason)


def _damaged_metadata(store: ActivationStore) -> Iterator[Damage]:
    """Yield the damage to ids, row ranges and labels: against their checksums and the plan's digests."""
    plan = store.plan

    def sample_ids() -> bool:
        fresh = ActivationStore.open(str(store.path))
        planned: str = plan["sample_ids"]
        return sha256(canonical_json(fresh.samples)) == planned

    def lengths(name: str, stream: str) -> bool:
        length, _ = read_column(store.path, f"points/{name}/length")
        start, _ = read_column(store.path, f"points/{name}/start")
        planned: str = plan["streams"][stream]["lengths"]
        return sha256(length.astype("<i8").tobytes()) == planned and np.array_equal(start, starts_of(length))

    def label(name: str, entry: dict[str, Any]) -> bool:
        planned: str = entry["digest"]
        return digest(read_label(store.path, name, entry["kind"])) == planned

    checks: list[tuple[str, Callable[[], bool]]] = [("samples/id", sample_ids)]
    for name, info in store.points.items():
        if info.stream is not None:
            checks.append((f"points/{name}", lambda n=name, s=info.stream: lengths(n, s)))  # type: ignore[misc]
    for name, entry in plan["labels"].items():
        checks.append((f"samples/{name}", lambda n=name, e=entry: label(n, e)))  # type: ignore[misc]
    for path, check in checks:
        try:
            reason = "" if check() else "it does not match the plan"
        except (StoreError, ValueError, KeyError) as error:
            reason = str(error)
        if reason:
            everything = (0, plan["n_samples"])
            yield Damage(path, "metadata", 0, everything, everything, reason)


def repair(
    store: ActivationStore,
    report: VerifyReport | None = None,
    *,
    progress: Progress | None = None,
    threads: int = 2,
) -> list[Damage]:
    """Withdraw the commit of each damaged chunk, so that resuming makes it again; return those chunks.

    Nothing else is touched. Damaged metadata cannot be made again: restore those files from a copy.

    Raises:
        StoreError: the store is open for reading only, or metadata are damaged.
    """
    if store.mode != "r+":
        raise StoreError(f"{store.path} is open for reading only: open it with mode='r+'")
    found = report or verify(store, progress=progress, threads=threads)
    if lost := [piece for piece in found.damaged if piece.kind == "metadata"]:
        raise StoreError(f"{lost[0]}; metadata cannot be made again: restore the file from a copy")
    arrays = {(array.kind, array.owner): array for array in store.arrays}
    for piece in found.damaged:
        store.commits(next(a for key, a in arrays.items() if key == (piece.kind, piece.point))).withdraw(
            piece.chunk
        )
    return found.damaged
