"""Commit records: the only proof that a chunk is complete.

`_commit/<array>/<k>.json` is created exclusively after chunk `k` is on the disk under its final name. Readers
trust these records and never the shape of an array, because a missing chunk reads as zeros in Zarr.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .durable import link_file, stage_file, sync_folder
from .errors import DamagedChunkError, NotCommittedError, StoreBusyError
from .remote import Place, RemotePath, local
from .zarrjson import ArraySpec

_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What a writer says about a chunk it has completed.

    Attributes:
        rows: rows that hold data; the rest of the last chunk is padding.
        bytes: size of the file, checksum included.
        crc32c: CRC-32C of the rows as they are in memory, padding included.
        samples: first sample with a row in the chunk, and the one after the last.
        absmax: largest absolute true value.
        overflow: true values beyond 65504 in a float16 chunk; they are stored scaled, never clamped.
        exponent: true value = stored value * 2**exponent.
        inner: in a shard, the CRC-32C of the rows of each of its chunks.
    """

    rows: int
    bytes: int
    crc32c: int
    samples: tuple[int, int]
    absmax: float
    overflow: int = 0
    exponent: int = 0
    inner: tuple[int, ...] = ()

    def dump(self) -> memoryview:
        """Return the record as it is stored."""
        fields = {key: value for key, value in asdict(self).items() if key != "inner" or value}
        return memoryview(json.dumps(fields, allow_nan=False).encode())

    @property
    def scale(self) -> float:
        """The power of two that stored values are multiplied by."""
        return 2.0**self.exponent


class CommitLog:
    """The commit records of one array; they only accumulate, so a cached listing errs on the safe side."""

    def __init__(self, root: Place, spec: ArraySpec) -> None:
        """List nothing yet: the records are read when they are first asked for."""
        self.spec = spec
        self.folder: Place = root / "_commit" / spec.path
        self._committed: np.ndarray | None = None
        self._records: dict[int, CommitRecord] = {}
        self._fetched: dict[str, bytes] | None = None

    def refresh(self) -> None:
        """Forget what was listed; the next question reads the folder again."""
        self._committed = self._fetched = None
        self._records.clear()

    @property
    def committed(self) -> np.ndarray:
        """Bool [chunks]: which chunks have a record. Do not modify."""
        if self._committed is None:
            found = np.zeros(self.spec.n_chunks, dtype=bool)
            remote = isinstance(self.folder, RemotePath)
            names = (path.name for path in self.folder.iterdir()) if remote or self.folder.is_dir() else ()
            for name in names:
                stem = name.removesuffix(_SUFFIX)
                if name.endswith(_SUFFIX) and stem.isdecimal() and int(stem) < len(found):
                    found[int(stem)] = True
            self._committed = found
        return self._committed

    def file(self, chunk: int) -> Place:
        """Return the path of a record."""
        return self.folder / f"{chunk}{_SUFFIX}"

    def _content(self, chunk: int) -> bytes:
        """Return a stored record; remote ones are fetched all at once when the first is needed."""
        if not isinstance(self.folder, RemotePath):
            return self.file(chunk).read_bytes()
        if self._fetched is None:
            names = [f"{k}{_SUFFIX}" for k in np.flatnonzero(self.committed).tolist()]
            self._fetched = self.folder.read_many(names)
        found = self._fetched.get(f"{chunk}{_SUFFIX}")
        return self.file(chunk).read_bytes() if found is None else found

    def record(self, chunk: int) -> CommitRecord:
        """Return the record of a chunk.

        Raises:
            NotCommittedError: there is none.
            DamagedChunkError: it cannot be parsed or contradicts the array.
        """
        cached = self._records.get(chunk)
        if cached is None:
            cached = self._records[chunk] = self._read(chunk)
        return cached

    def _read(self, chunk: int) -> CommitRecord:
        file = self.file(chunk)
        try:
            fields = json.loads(self._content(chunk))
            inner = tuple(fields.get("inner", ()))
            record = CommitRecord(**{**fields, "samples": tuple(fields["samples"]), "inner": inner})
            start, stop = self.spec.rows_of(chunk)
            valid = record.rows == stop - start and abs(record.exponent) < 128 and record.crc32c >= 0
            valid &= len(inner) == (-(-(stop - start) // self.spec.block_rows) if self.spec.inner_rows else 0)
        except FileNotFoundError:
            message = (
                f"chunk {chunk} of {self.spec.path} is not committed: resume the run that writes this store"
            )
            raise NotCommittedError(message) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            valid = False
        if not valid:
            raise DamagedChunkError(
                f"commit record {file} is damaged: run `modegap repair`, then resume to rewrite it"
            )
        return record

    def stage(self, chunk: int, record: CommitRecord) -> Path:
        """Write the record of a chunk to a temporary file, sync it and return its name.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        return stage_file(local(self.file(chunk)), (record.dump(),))

    def publish(self, chunk: int, record: CommitRecord, staged: Path) -> None:
        """Link the staged record of a chunk, whose file is on the disk, to its name; the caller syncs.

        Raises:
            StoreBusyError: the chunk is committed already.
            OSError: the disk is full, read-only or broken.
        """
        try:
            link_file(staged, local(self.file(chunk)))
        except FileExistsError:
            message = (
                f"chunk {chunk} of {self.spec.path} is already committed by another writer: resume to go on"
            )
            raise StoreBusyError(message) from None
        self.committed[chunk] = True
        self._records[chunk] = record

    def withdraw(self, chunk: int) -> None:
        """Remove the record of a damaged chunk, so that the next writer makes the chunk again."""
        local(self.file(chunk)).unlink(missing_ok=True)
        sync_folder(local(self.folder))
        self.committed[chunk] = False
        self._records.pop(chunk, None)
