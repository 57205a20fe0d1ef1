"""The files behind chunks: plain, compressed, or several chunks in a shard with an index at its end.

A shard is its chunks, each with its checksum, then offset and size of each (two uint64, both 2**64 - 1 for a
chunk that is not there), then the checksum of that index.
https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from .checksum import TRAILER, combine, crc32c, trailer
from .commits import CommitLog, CommitRecord
from .errors import DamagedChunkError, unreadable
from .handles import Handle, opened, size_of
from .remote import Place, RemotePath
from .shardindex import ShardIndexes
from .zarrjson import BLOSC, ArraySpec

_MISSING = 2**64 - 1
_ENTRY = 16
_BLOSC_OVERHEAD = 16
T = TypeVar("T")


class Encoded:
    """What a file holds.

    Attributes:
        bytes: size of the file, once it has been iterated over.
        crc32c: checksum of the rows.
        inner: in a shard, that of each chunk.
    """

    def __init__(self, spec: ArraySpec, content: memoryview, sums: Sequence[int]) -> None:
        """Encode a chunk, or the chunks of a shard, from its rows and the checksum of each block with data."""
        self._spec, self._content, self._sums = spec, content, sums
        self.bytes = 0
        self.inner = tuple(sums) if spec.inner_rows else ()
        self.crc32c = sums[0]
        for found in sums[1:]:
            self.crc32c = combine(self.crc32c, found, spec.block_bytes)

    @property
    def planned_bytes(self) -> int:
        """Size that the file will have; 0 where compression decides."""
        return 0 if self._spec.compressed else _plain_bytes(self._spec, len(self._sums))

    def __iter__(self) -> Iterator[memoryview | bytes]:
        """Yield the file in pieces."""
        size = self._spec.block_bytes
        index = np.full(2 * self._spec.parts, _MISSING, "<u8")
        for block, found in enumerate(self._sums):
            index[2 * block] = self.bytes
            for piece in self._block(self._content[block * size : (block + 1) * size], found):
                self.bytes += len(piece)
                yield piece
            index[2 * block + 1] = self.bytes - int(index[2 * block])
        if self._spec.inner_rows:
            entries = index.tobytes()
            self.bytes += len(entries) + TRAILER
            yield entries + trailer(crc32c(entries))

    def _block(self, content: memoryview, found: int) -> Iterator[memoryview | bytes]:
        if self._spec.compressed:
            packed = _blosc(np.dtype(self._spec.dtype)).encode(content)
            yield packed
            yield trailer(crc32c(packed))
        else:
            yield content
            yield trailer(found)


def file_bytes(spec: ArraySpec, chunk: int) -> int | None:
    """Return the size of a chunk's (or shard's) file as `encode` writes it; None where it is compressed."""
    if spec.compressed:
        return None
    start, stop = spec.rows_of(chunk)
    return _plain_bytes(spec, -(-(stop - start) // spec.block_rows))


def _plain_bytes(spec: ArraySpec, blocks: int) -> int:
    index = spec.parts * _ENTRY + TRAILER if spec.inner_rows else 0
    return blocks * (spec.block_bytes + TRAILER) + index


def has_its_size(spec: ArraySpec, root: Place, chunk: int, log: CommitLog) -> bool:
    """Return whether the file of a committed chunk exists and has the size that it was written with."""
    try:
        size = size_of(spec.chunk_file(root, chunk))
        return size == (file_bytes(spec, chunk) or log.record(chunk).bytes)
    except (FileNotFoundError, NotADirectoryError, DamagedChunkError):
        return False


def read_block(
    file: Place | str,
    spec: ArraySpec,
    block: int,
    content: memoryview,
    record: CommitRecord | None,
    threads: int = 1,
    indexes: ShardIndexes | None = None,
) -> str | None:
    """Fill `content` with a block's rows, padding included; return None if it is intact, else what is wrong.

    Its bytes must match the checksum behind them in the file, and its rows, where there is one, the commit
    record. `threads` share the work on uncompressed rows. Indexes of shards are taken from `indexes`, if given.
    """

    def read(handle: Handle) -> str | None:
        found = rows(handle)
        if isinstance(found, str):
            return found
        recorded = found if record is None else recorded_sum(spec, block, record)
        return None if found == recorded else "its content does not match the checksum of its commit record"

    def rows(handle: Handle) -> int | str:
        expected = record.bytes if spec.compressed and record else file_bytes(spec, block // spec.parts)
        if expected is not None and not (spec.inner_rows or spec.compressed or isinstance(file, RemotePath)):
            return _read_alone(handle, content, expected, threads)
        size = handle.size() if record is None or not isinstance(file, RemotePath) else record.bytes
        if expected is not None and not spec.inner_rows and size != expected:
            return _missized(size, expected)
        place = _place(handle, spec, block, size, indexes)
        return place if isinstance(place, str) else _read_rows(handle, spec, *place, content, threads)

    wrong = _said(file, read)
    if wrong is not None and indexes is not None and indexes.forget(block // spec.parts):
        wrong = _said(file, read)
    return wrong


def recorded_sum(spec: ArraySpec, block: int, record: CommitRecord) -> int:
    """Return the checksum of a block's rows according to the commit record of its file."""
    return record.inner[block % spec.parts] if record.inner else record.crc32c


def _said(file: Place | str, read: Callable[[Handle], T], *, checked: bool = True) -> T | str:
    """Return what `read` says of an open file, or why it cannot be read.

    Raises:
        StoreError: it may not be read, or the server does not answer: that is no damage.
    """
    try:
        with opened(file, checked=checked) as handle:
            return read(handle)
    except (FileNotFoundError, NotADirectoryError):
        return "its file is missing"
    except OSError as error:
        if isinstance(file, RemotePath) or isinstance(error, PermissionError):
            raise unreadable(file, error) from error
        return f"its file cannot be read ({error.strerror or error})"


def _missized(size: int, expected: int) -> str:
    return f"its file has {size} bytes, expected {expected}"


def _read_alone(handle: Handle, content: memoryview, expected: int, threads: int) -> int | str:
    """Fill `content` from a local file of one chunk, whose size shows in the reading; return as `_read_rows`."""
    found = handle.fill(content, 0, threads)
    behind = handle.read_range(len(content), TRAILER + 1)
    if found is None or len(behind) != TRAILER:
        size = handle.size()
        return _missized(size, expected) if size != expected else "its file was cut short while it was read"
    return found if behind == trailer(found) else "its content does not match the checksum stored with it"


def _place(
    handle: Handle, spec: ArraySpec, block: int, size: int, indexes: ShardIndexes | None = None
) -> tuple[int, int] | str:
    """Return offset and size (checksum included) of a block in its file of `size` bytes, or what is wrong."""
    if not spec.inner_rows:
        return 0, size
    shard, at = divmod(block, spec.parts)
    length = spec.parts * _ENTRY

    def read() -> bytes | None:
        index = handle.read_range(max(size - length - TRAILER, 0), length + TRAILER)
        whole = len(index) == length + TRAILER and trailer(crc32c(index[:length])) == index[length:]
        return index[:length] if whole else None

    def keep(index: bytes) -> bool:
        # "absent" is believed of the file only: no checksum would contradict an index that has become wrong
        start, stop = spec.rows_of(shard)
        return _MISSING not in np.frombuffer(index, "<u8")[: 2 * -(-(stop - start) // spec.block_rows)]

    index = read() if indexes is None else indexes.get(shard, read, keep)
    if index is None:
        return "the index of its shard does not match the checksum stored with it"
    offset, nbytes = np.frombuffer(index, "<u8")[2 * at : 2 * at + 2].tolist()
    if (offset, nbytes) == (_MISSING, _MISSING):
        return 0, 0
    if offset + nbytes > size - length - TRAILER or nbytes < TRAILER:
        return "the index of its shard points outside the shard"
    return offset, nbytes


def _read_rows(
    handle: Handle, spec: ArraySpec, offset: int, nbytes: int, content: memoryview, threads: int
) -> int | str:
    """Fill `content` from a place in a file and return the checksum of its rows, or what is wrong."""
    if nbytes == 0:
        content[:] = bytes(len(content))
        return crc32c(content)
    if spec.compressed:
        if nbytes > len(content) + _BLOSC_OVERHEAD + TRAILER:
            return f"it has {nbytes} bytes, more than its rows take uncompressed"
        data = handle.read_range(offset, nbytes)
        packed = data[:-TRAILER]
        if trailer(crc32c(packed)) != data[-TRAILER:]:
            return "its content does not match the checksum stored with it"
        try:
            _blosc(np.dtype(spec.dtype)).decode(packed, content)
        except (RuntimeError, ValueError) as error:
            return f"its content cannot be decompressed ({error})"
        return crc32c(content)
    if nbytes != len(content) + TRAILER:
        return f"it has {nbytes} bytes, expected {len(content) + TRAILER}"
    found = handle.fill(content, offset, threads)
    if found is None:
        return "its file was cut short while it was read"
    if handle.read_range(offset + len(content), TRAILER) != trailer(found):
        return "its content does not match the checksum stored with it"
    return found


def read_part(
    file: Place | str,
    spec: ArraySpec,
    block: int,
    first: int,
    content: memoryview,
    indexes: ShardIndexes | None = None,
) -> str | None:
    """Fill `content` with an uncompressed block's rows from its row `first` on, without checking them.

    Indexes of shards are taken from `indexes`, if given: with one that `repair` has replaced meanwhile, a
    shard keeps its layout, as its blocks are uncompressed.
    """

    def read(handle: Handle) -> str | None:
        place = _place(handle, spec, block, handle.size() if spec.inner_rows else 1, indexes)
        if isinstance(place, str):
            return place
        if place[1] == 0:
            content[:] = bytes(len(content))
            return None
        filled = handle.fill_unchecked(content, place[0] + first * spec.row_bytes)
        return None if filled else "its file ends early"

    return _said(file, read)


def find_rows(
    file: str, spec: ArraySpec, block: int, indexes: ShardIndexes | None = None
) -> tuple[int, int] | None:
    """Return the offset of an uncompressed block's rows and the checksum behind them.

    None where the file is not there, does not have its size, or has no such block.
    """

    def read(handle: Handle) -> tuple[int, int] | None:
        place = _place(handle, spec, block, handle.size(), indexes)
        if isinstance(place, str) or place[1] != spec.block_bytes + TRAILER:
            return None
        behind = handle.read_range(place[0] + spec.block_bytes, TRAILER)
        return (place[0], int.from_bytes(behind, "little")) if len(behind) == TRAILER else None

    found = _said(file, read)
    return None if isinstance(found, str) else found


def read_unsummed(
    file: str, spec: ArraySpec, block: int, content: memoryview, indexes: ShardIndexes | None = None
) -> int | None:
    """Fill `content` with an uncompressed block's rows, without checking them.

    Returns the checksum stored behind the rows, or None where the file is not all there, does not have its size, or has
    no such block.
    """

    def read(handle: Handle) -> int | None:
        place = _place(handle, spec, block, handle.size() if spec.inner_rows else 0, indexes)
        if isinstance(place, str) or (spec.inner_rows and place[1] != spec.block_bytes + TRAILER):
            return None
        if not handle.fill_unchecked(content, place[0]):
            return None
        behind = handle.read_range(place[0] + spec.block_bytes, TRAILER + 1)
        if len(behind) < TRAILER or not (spec.inner_rows or len(behind) == TRAILER):
            return None
        return int.from_bytes(behind[:TRAILER], "little")

    # A pipe cannot be read at an offset, and what is no file ends in None in other ways: one call less.
    found = _said(file, read, checked=spec.inner_rows > 0)
    return None if isinstance(found, str) else found


class _Codec:
    """numcodecs' blosc, imported when the first compressed chunk is met."""

    def __init__(self, itemsize: int) -> None:
        from numcodecs.blosc import SHUFFLE, Blosc

        self._blosc = Blosc(BLOSC["cname"], BLOSC["clevel"], SHUFFLE, typesize=itemsize)

    def encode(self, content: memoryview) -> bytes:
        return bytes(self._blosc.encode(content))

    def decode(self, packed: bytes, content: memoryview) -> None:
        self._blosc.decode(packed, out=content)


def _blosc(dtype: np.dtype) -> _Codec:
    return _Codec(dtype.itemsize)
