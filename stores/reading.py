"""Verified reads of chunks straight from their files: 3 to 4 times as fast as through a Zarr library."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .buffers import aligned_empty, bytes_of
from .checksum import TRAILER, trailer
from .commits import CommitLog, CommitRecord
from .errors import DamagedChunkError, NotCommittedError
from .layout import StoredArray
from .ranges import Ranges
from .summing import read_summed
from .zarrjson import ArraySpec


def read_chunk(file: Path, content: memoryview, record: CommitRecord | None, threads: int = 1) -> str | None:
    """Fill `content` with a chunk; return None if it is intact, else what is wrong with it.

    The content must match the checksum behind it in the file and, where there is one, the commit record. `threads`
    share the work.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return "its file is missing"
    except OSError as error:
        return f"its file cannot be opened ({error.strerror})"
    try:
        size, expected = os.fstat(descriptor).st_size, len(content) + TRAILER
        if size != expected:
            return f"its file has {size} bytes, expected {expected}"
        found = read_summed(descriptor, content, 0, threads)
        if found is None:
            return "its file was cut short while it was read"
        stored = os.pread(descriptor, TRAILER, len(content))
    except OSError as error:
        return f"its file cannot be read ({error.strerror})"
    finally:
        os.close(descriptor)
    if stored != trailer(found):
        return "its content does not match the checksum stored with it"
    if record is not None and record.crc32c != found:
        return "its content does not match the checksum of its commit record"
    return None


def read_rows(root: Path, spec: ArraySpec, chunk: int, first: int, content: memoryview) -> None:
    """Fill `content` with a chunk's rows from its row `first` on, without checking them.

    Raises:
        OSError: the file is missing or too short.
    """
    descriptor = os.open(spec.chunk_file(root, chunk), os.O_RDONLY)
    try:
        got = os.preadv(descriptor, [content], first * spec.row_bytes)
    finally:
        os.close(descriptor)
    if got != len(content):
        raise OSError(f"chunk {chunk} of {spec.path} ends early: run `modegap verify`")


class ChunkedArray:
    """The chunks of one stored array; safe to read from several threads."""

    def __init__(
        self, root: Path, array: StoredArray, log: CommitLog, ranges: Ranges, ids: Sequence[str]
    ) -> None:
        """Bind an array to its commit records and row ranges."""
        self.spec, self._array, self._root = array.spec, array, root
        self._log, self._ranges, self._ids = log, ranges, ids
        self._last = threading.local()

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return np.dtype(self.spec.dtype)

    def describe_rows(self, start: int, stop: int) -> str:
        """Return "rows a to b of <kind> <name>" for messages."""
        return f"rows {start} to {stop - 1} of {self._array.kind} {self._array.owner!r}"

    def check_range(self, start: int, stop: int) -> None:
        """Raise unless all rows exist and belong to complete samples.

        Raises:
            ValueError: the range is outside the array.
            NotCommittedError: a sample of the range is not completely stored.
        """
        if not 0 <= start <= stop <= self.spec.shape[0]:
            raise ValueError(
                f"row range {start}:{stop} is outside {self._array.owner!r}, which has {self.spec.shape[0]}"
            )
        bad = self._ranges.first_incomplete(start, stop)
        if bad < stop:
            sample = self._ids[int(self._ranges.sample_of_rows(bad, bad + 1)[0])]
            raise NotCommittedError(
                f"{self.describe_rows(start, stop)} are not all stored: sample {sample!r} is incomplete "
                f"({int(self._ranges.complete.sum())} of {len(self._ids)} samples are complete): resume it"
            )

    def load(self, chunk: int, out: np.ndarray, threads: int = 1) -> None:
        """Fill `out` [chunk_rows, ...] (stored dtype, C-contiguous) with a whole chunk, padding included.

        Up to `threads` threads share the work.

        Raises:
            NotCommittedError: the chunk is not committed.
            DamagedChunkError: its file is missing, has another size, or fails a checksum.
        """
        record = self._log.record(chunk)
        reason = read_chunk(self.spec.chunk_file(self._root, chunk), bytes_of(out), record, threads)
        if reason is not None:
            start, stop = self.spec.rows_of(chunk)
            first, last = record.samples[0], record.samples[1] - 1
            raise DamagedChunkError(
                f"chunk {chunk} ({self.describe_rows(start, stop)}, samples {self._ids[first]!r} to "
                f"{self._ids[last]!r}) is damaged, {reason}: run `modegap repair`, then resume to rewrite it"
            )

    def read_into(self, start: int, stop: int, out: np.ndarray, verify: bool) -> None:
        """Fill `out` with stored values times their chunk's scale; the caller has checked the range."""
        size = self.spec.chunk_rows
        for chunk in range(start // size, -(-stop // size)):
            first, last = max(start, chunk * size), min(stop, (chunk + 1) * size)
            piece = out[first - start : last - start]
            scale = self._log.record(chunk).scale
            if verify and last - first == size and out.dtype == self.dtype:
                self.load(chunk, piece)
            elif verify:
                piece[...] = self._cached(chunk)[first - chunk * size : last - chunk * size]
            else:
                stored = piece if out.dtype == self.dtype else np.empty(piece.shape, self.dtype)
                read_rows(self._root, self.spec, chunk, first - chunk * size, bytes_of(stored))
                piece[...] = stored
            if scale != 1.0:
                piece *= scale

    def _cached(self, chunk: int) -> np.ndarray:
        """Return a whole verified chunk, kept (one a thread) for the neighbouring rows that often follow."""
        if getattr(self._last, "chunk", None) != chunk:
            buffer: np.ndarray | None = getattr(self._last, "buffer", None)
            if buffer is None:
                buffer = aligned_empty((self.spec.chunk_rows, *self.spec.shape[1:]), self.dtype)
                self._last.buffer = buffer
            self._last.chunk = None
            self.load(chunk, buffer)
            self._last.chunk = chunk
        cached: np.ndarray = self._last.buffer
        return cached

    def max_exponent(self, start: int, stop: int) -> int:
        """Return the largest scale exponent of the chunks that hold the rows, 0 for none."""
        size = self.spec.chunk_rows
        return max((self._log.record(k).exponent for k in range(start // size, -(-stop // size))), default=0)
