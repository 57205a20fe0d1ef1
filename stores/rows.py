"""Reading: the rows of one point, in bulk and checked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from .buffers import aligned_empty
from .commits import CommitLog
from .ranges import Ranges
from .reading import ChunkedArray, Extent
from .summing import default_threads


class RowArray:
    """The token or pooled rows of one point.

    Only rows of complete samples can be read. True value = stored value * scale; a chunk's scale is a power
    of two and 1.0 unless the chunk held values beyond fp16's 65504.
    """

    def __init__(
        self, chunks: ChunkedArray, log: CommitLog, ranges: Ranges, columns: Mapping[str, ChunkedArray]
    ) -> None:
        """Use `ActivationStore.rows` instead; `columns` has the ids and modality of token rows."""
        self._chunks, self._log, self._ranges, self._columns = chunks, log, ranges, columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (stored or not) and width."""
        rows, width = self._chunks.spec.shape
        return rows, width

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype: float16 or float32."""
        return self._chunks.dtype

    @property
    def chunk_rows(self) -> int:
        """Rows a chunk."""
        return self._chunks.spec.block_rows

    @property
    def n_chunks(self) -> int:
        """Chunks, committed or not; in shards, the chunks inside them."""
        return self._chunks.spec.n_blocks

    @property
    def committed(self) -> np.ndarray:
        """Bool [chunks]: which are committed."""
        return np.repeat(self._log.committed, self._chunks.spec.parts)[: self.n_chunks]

    @property
    def n_valid_rows(self) -> int:
        """Rows of the longest run of complete samples from the first on."""
        return self._ranges.first_incomplete(0, self.shape[0])

    def scale(self, chunk: int) -> float:
        """Return the power of two that the stored values of a chunk are multiplied by.

        Raises:
            ValueError: no such chunk.
            NotCommittedError: the chunk is not committed.
        """
        self._check_chunk(chunk)
        return self._chunks.record(chunk).scale

    def chunk(
        self,
        chunk: int,
        out: np.ndarray | None = None,
        *,
        threads: int | None = None,
        verify: bool = True,
    ) -> tuple[int, np.ndarray, float]:
        """Return (first row, stored values [m, d], scale) of one chunk, its checksum verified.

        `m` ends before the first row of an incomplete sample. The values are a view of `out`, if given:
        C-contiguous, of the stored dtype and at least [chunk_rows, d]; from `aligned_empty` it is fastest.
        `threads` share the work, by default two where there are as many cores. `verify=False` skips the
        checksum, for a store that has just been verified (compressed chunks are checked all the same).

        Raises:
            ValueError: no such chunk, or `out` does not fit, or threads below 1.
            NotCommittedError: the chunk, or the sample of its first row, is not completely stored.
            DamagedChunkError: the chunk fails its checksum.
        """
        start, stop = self._complete_rows(chunk)
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        need = (self.chunk_rows, self.shape[1])
        if out is None:
            out = aligned_empty(need, self.dtype)
        fits = out.ndim == 2 and out.shape[1] == need[1] and len(out) >= need[0] and out.flags.c_contiguous
        if not fits or out.dtype != self.dtype or not out.flags.writeable:
            raise ValueError(
                f"out must be writable, C-contiguous {self.dtype} with at least shape {need}, "
                f"got {out.dtype} {out.shape}"
            )
        if verify:
            count = default_threads() if threads is None else threads
            self._chunks.load(chunk, out[: self.chunk_rows], count)
        else:
            self._chunks.load_unchecked(chunk, out[: self.chunk_rows])
        return start, out[: stop - start], self._chunks.record(chunk).scale

    @property
    def plain(self) -> bool:
        """Whether `chunk_unsummed` and `extent` serve the chunks: they are in local files, and not compressed."""
        return self._chunks.plain

    def chunk_unsummed(self, chunk: int, out: np.ndarray) -> tuple[int, int] | None:
        """Fill `out` with a chunk's stored values, padding included, without summing them.

        For a caller who can sum them elsewhere, and who takes on what `chunk` does otherwise: the values are
        intact if the CRC-32C of their bytes is both numbers that are returned, the one stored behind them and
        that of the commit record. Where it is not, or where None is returned because the file is gone, cut
        short or too long, `chunk` says what is wrong.

        Args:
            chunk: one of a `plain` array.
            out: C-contiguous [chunk_rows, d] of the stored dtype.

        Raises:
            ValueError: no such chunk.
            NotCommittedError: as `chunk`.
        """
        self._complete_rows(chunk)
        return self._chunks.load_unsummed(chunk, out)

    def extent(self, chunk: int) -> Extent | None:
        """Return where a chunk's rows lie, uncompressed, in a local file, for a reader that is not modegap's.

        Such as GPUDirect Storage: what it reads is intact if its CRC-32C is both of `sums`. None where the array is
        not `plain`, or the file is gone, cut short or too long: `chunk` says what is wrong then.

        Raises:
            ValueError: no such chunk.
            NotCommittedError: as `chunk`.
        """
        self._complete_rows(chunk)
        return self._chunks.extent(chunk)

    def _complete_rows(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk and the one after its last of a complete sample."""
        self._check_chunk(chunk)
        start, stop = self._chunks.spec.rows_of_block(chunk)
        stop = self._ranges.first_incomplete(start, stop)
        if stop == start:
            self._chunks.check_range(start, start + 1)
        return start, stop

    def chunks(self, *, threads: int | None = None) -> Iterator[tuple[int, np.ndarray, float]]:
        """Yield what `chunk` returns for each chunk as far as rows are complete, read ahead of the caller.

        Each of `threads` (default two where there are as many cores) reads another chunk into one of
        `threads` + 1 buffers that are used in turn: the values are valid until the next ones are asked for.

        Raises:
            ValueError: threads below 1. DamagedChunkError: a chunk fails its checksum.
        """
        count = default_threads() if threads is None else threads
        if count < 1:
            raise ValueError(f"threads must be at least 1, got {count}")
        return self._read_ahead(count)

    def _read_ahead(self, threads: int) -> Iterator[tuple[int, np.ndarray, float]]:
        last = -(-self.n_valid_rows // self.chunk_rows)
        free = [aligned_empty((self.chunk_rows, self.shape[1]), self.dtype) for _ in range(threads + 1)]
        coming: deque[tuple[np.ndarray, Future[tuple[int, np.ndarray, float]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="modegap-read") as pool:
            for chunk in range(last + threads):
                if chunk < last:
                    buffer = free.pop()
                    coming.append((buffer, pool.submit(self.chunk, chunk, buffer, threads=1)))
                if coming and (chunk >= threads or chunk >= last):
                    buffer, read = coming.popleft()
                    yield read.result()
                    free.append(buffer)

    def read(
        self, start: int, stop: int, out: np.ndarray | None = None, *, verify: bool = True
    ) -> np.ndarray:
        """Return the true values of rows `start` to `stop` (exclusive), [n, d].

        The dtype is the stored one, or float32 if a chunk of the range is scaled. With `out` ([n, d], float16
        or float32) they are written there. `verify=False` reads only the rows and skips the checksums of
        their chunks.

        Raises:
            ValueError: a range outside the array, an `out` that does not fit, or a float16 `out` for scaled
            rows. NotCommittedError: a sample of the range is not completely stored. DamagedChunkError: a
            chunk fails its checksum.
        """
        self._chunks.check_range(start, stop)
        shape = (stop - start, self.shape[1])
        scaled = self._chunks.max_exponent(start, stop) > 0
        needed = np.dtype(np.float32) if scaled else self.dtype
        if out is None:
            out = aligned_empty(shape, needed)
        if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be writable, C-contiguous with shape {shape}, got shape {out.shape}")
        if out.dtype != needed and out.dtype != np.float32:
            raise ValueError(f"out must be {needed} to hold these rows, got {out.dtype}")
        self._chunks.read_into(start, stop, out, verify)
        return out

    def sample(self, index: int) -> np.ndarray:
        """Return the true values of all rows of a sample, [rows of the sample, d].

        Raises:
            ValueError: no such sample.
            NotCommittedError, DamagedChunkError: as `read`.
        """
        start, stop = self.sample_range(index)
        return self.read(start, stop)

    def sample_range(self, index: int) -> tuple[int, int]:
        """Return the first row of a sample and the row after its last.

        Raises:
            ValueError: no such sample.
        """
        n_samples = len(self._ranges.complete)
        if not 0 <= index < n_samples:
            raise ValueError(f"sample index must be 0 to {n_samples - 1}, got {index}")
        return int(self._ranges.bounds[index]), int(self._ranges.bounds[index + 1])

    def lengths(self) -> np.ndarray | None:
        """Return int64 [samples], the token rows of each sample; None for pooled rows."""
        return np.diff(self._ranges.bounds) if self._columns else None

    def sample_of_row(self, start: int, stop: int) -> np.ndarray:
        """Return the int64 [n] sample index of each row."""
        return self._ranges.sample_of_rows(start, stop)

    def position(self, start: int, stop: int) -> np.ndarray:
        """Return the int32 [n] position of each row within its sample."""
        samples = self._ranges.sample_of_rows(start, stop)
        positions: np.ndarray = np.arange(start, stop) - self._ranges.bounds[samples]
        return positions.astype(np.int32)

    def modality(self, start: int, stop: int) -> np.ndarray | None:
        """Return the uint8 [n] modality (0 none, 1 text, 2 image, 3 audio) of each row; None for pooled rows.

        Raises:
            ValueError, NotCommittedError, DamagedChunkError: as `read`.
        """
        return self._column("modality", start, stop)

    def token_ids(self, start: int, stop: int) -> np.ndarray | None:
        """Return the int32 [n] token id of each row (-1 where none was given); None for pooled rows.

        Raises:
            ValueError, NotCommittedError, DamagedChunkError: as `read`.
        """
        return self._column("ids", start, stop)

    def _column(self, name: str, start: int, stop: int) -> np.ndarray | None:
        column = self._columns.get(name)
        if column is None:
            return None
        column.check_range(start, stop)
        out = np.empty(stop - start, column.dtype)
        column.read_into(start, stop, out, verify=True)
        return out

    def _check_chunk(self, chunk: int) -> None:
        if not 0 <= chunk < self.n_chunks:
            raise ValueError(f"chunk must be 0 to {self.n_chunks - 1}, got {chunk}")
