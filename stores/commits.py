"""Commit records: the only proof that a chunk is complete.

`_commit/<array>/<k>.json` is created exclusively after chunk `k` is on the disk under its final name. Readers
trust these records and never the shape of an array, because a missing chunk reads as zeros in Zarr.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from .checksum import crc32c
from .durable import link_file, stage_file, sync_folder
from .errors import DamagedChunkError, NotCommittedError, StoreBusyError, gone, unreadable
from .remote import Place, RemotePath, local, small_content
from .zarrjson import METADATA, ArraySpec

Content = bytes
_SUFFIX = ".json"
_MAX_BYTES = 16 * 2**20
_MAX_EXPONENT = 127


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
        """Return the record as it is stored: JSON whose last entry, `check`, is the CRC-32C of the others."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.inner:
            del values["inner"]
        text = json.dumps(values, allow_nan=False)
        return memoryview(f'{text[:-1]}, "check": {crc32c(text.encode())}}}'.encode())

    @classmethod
    def parse(cls, content: Content, spec: ArraySpec, chunk: int) -> Self:
        """Return the record that `content` holds.

        Raises:
            ValueError: it is not what `dump` wrote for this chunk, to the bit. A record without `check`, as
                written before there was one, is taken if its values are possible.
        """
        try:
            found: dict[str, Any] = json.loads(content)
            checked = found.pop("check", None) is not None
            samples, inner = tuple(found["samples"]), tuple(found.get("inner", ()))
            record = cls(**{**found, "samples": samples, "inner": inner})
            if not record._fits(spec, chunk) or (checked and record.dump() != content):
                raise ValueError("its values are impossible, or not those of its checksum")
        except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"it is no commit record ({error})") from None
        return record

    def _fits(self, spec: ArraySpec, chunk: int) -> bool:
        """Return whether a writer could have said this about a chunk: a store may come from anywhere."""
        start, stop = spec.rows_of(chunk)
        whole = (self.rows, self.bytes, self.crc32c, self.overflow, self.exponent, *self.samples, *self.inner)
        blocks = -(-(stop - start) // spec.block_rows) if spec.inner_rows else 0
        return (
            all(type(value) is int for value in whole)
            and type(self.absmax) in (int, float)
            and math.isfinite(self.absmax)
            and self.rows == stop - start
            and len(self.samples) == 2
            and len(self.inner) == blocks
            and abs(self.exponent) <= _MAX_EXPONENT
            and min(self.bytes, self.crc32c, self.overflow, *self.samples, *self.inner) >= 0
        )

    @property
    def scale(self) -> float:
        """The power of two that stored values are multiplied by."""
        return 2.0**self.exponent


class CommitLog:
    """The commit records of one array; they only accumulate, so a cached listing errs on the safe side."""

    def __init__(self, root: Place, spec: ArraySpec) -> None:
        """List nothing yet: the records are read when they are first asked for."""
        self.spec, self._root = spec, root
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
        """Bool [chunks]: which chunks have a record. Do not modify.

        Raises:
            StoreError: the store is gone, or its records cannot be listed.
        """
        if self._committed is None:
            found = np.zeros(self.spec.n_chunks, dtype=bool)
            for name in self._names():
                stem = name.removesuffix(_SUFFIX)
                if name.endswith(_SUFFIX) and stem.isascii() and stem.isdecimal() and len(stem) < 20:
                    chunk = int(stem)
                    if chunk < len(found) and stem == str(chunk):
                        found[chunk] = True
            self._committed = found
        return self._committed

    def _names(self) -> list[str]:
        try:
            if isinstance(self.folder, RemotePath):
                return self.folder.names()
            return [path.name for path in self.folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            # Copies through object stores and archives leave empty folders out.
            if not (self._root / METADATA).is_file():
                raise gone(self._root) from None
            return []
        except OSError as error:
            raise unreadable(self.folder, error) from error

    def file(self, chunk: int) -> Place:
        """Return the path of a record."""
        return self.folder / f"{chunk}{_SUFFIX}"

    def _content(self, chunk: int) -> bytes:
        """Return a stored record; remote ones are fetched all at once when the first is needed."""
        if not isinstance(self.folder, RemotePath):
            return small_content(self.file(chunk), _MAX_BYTES)
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
            return CommitRecord.parse(self._content(chunk), self.spec, chunk)
        except (FileNotFoundError, NotADirectoryError):
            if not (self._root / METADATA).is_file():
                raise gone(self._root) from None
            message = (
                f"chunk {chunk} of {self.spec.path} is not committed: resume the run that writes this store"
            )
            raise NotCommittedError(message) from None
        except OSError as error:
            raise unreadable(file, error) from error
        except ValueError as error:
            raise DamagedChunkError(
                f"commit record {file} is damaged ({error}): run `modegap repair`, then resume"
            ) from None

    def stage(self, chunk: int, record: CommitRecord) -> Path:
        """Write the record of a chunk to a temporary local file, sync it and return its name.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        return stage_file(local(self.file(chunk)), record.dump())

    def publish(self, chunk: int, record: CommitRecord, staged: Path | None = None) -> None:
        """Create the record of a chunk whose file is there: link the staged one, or put a remote object.

        The caller syncs the folder.

        Raises:
            StoreBusyError: the chunk is committed already.
            OSError: the disk is full, read-only or broken; or the server does not answer.
        """
        file = self.file(chunk)
        try:
            if isinstance(file, RemotePath):
                file.create(bytes(record.dump()))
            else:
                link_file(staged or self.stage(chunk, record), file)
        except FileExistsError:
            message = (
                f"chunk {chunk} of {self.spec.path} is already committed by another writer: resume to go on"
            )
            raise StoreBusyError(message) from None
        self.committed[chunk] = True
        self._records[chunk] = record

    def withdraw(self, chunk: int) -> None:
        """Remove the record of a damaged chunk, so that the next writer makes the chunk again.

        Raises:
            OSError: it cannot be removed.
        """
        self.file(chunk).unlink(missing_ok=True)
        if not isinstance(self.folder, RemotePath):
            sync_folder(self.folder)
        self.committed[chunk] = False
        self._records.pop(chunk, None)
        if self._fetched is not None:
            self._fetched.pop(f"{chunk}{_SUFFIX}", None)
