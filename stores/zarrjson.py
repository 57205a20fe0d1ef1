"""The part of the Zarr v3 specification that schema 1 uses: group and array metadata, small whole arrays.

Arrays have chunks over the full width, fill value 0 and the default chunk keys `c/<k>/0`. Codecs: `[bytes
little, crc32c]`; with blosc between them in profile "archive"; in shards, indexed at the end, in "sharded".
https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .buffers import bytes_of
from .checksum import TRAILER, crc32c, trailer
from .errors import DamagedChunkError, DamagedMetadataError, unreadable
from .remote import P, Place, small_content

METADATA = "zarr.json"
MAX_CHUNK_BYTES = 16 * 2**20
"""Above glibc's 32 MiB mmap threshold fresh buffers fault on every page, so objects stay well below it."""

_MAX_DOCUMENT = 256 * 2**20
_MAX_COLUMN_CHUNKS = 2**20
_COLUMN_DTYPES = ("uint8", "int32", "int64", "float64")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One chunked array: where it is, its shape, dtype name, and rows a chunk.

    Attributes:
        chunk_rows: rows a chunk of the grid, which is a file: a shard where `inner_rows` is set.
        inner_rows: rows a chunk inside a shard; 0 where the array is not sharded.
        compressed: whether chunks are byte-shuffled and compressed with zstd.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    inner_rows: int = 0
    compressed: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk without its checksum; the last one is padded with zeros to this size."""
        return self.chunk_rows * self.row_bytes

    @property
    def n_chunks(self) -> int:
        """How many chunks hold all rows."""
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def block_rows(self) -> int:
        """Rows that are read and checked at a time: a chunk, or one inside a shard."""
        return self.inner_rows or self.chunk_rows

    @property
    def block_bytes(self) -> int:
        """Bytes of those rows, as they are in memory."""
        return self.block_rows * self.row_bytes

    @property
    def parts(self) -> int:
        """Blocks a file."""
        return self.chunk_rows // self.block_rows

    @property
    def n_blocks(self) -> int:
        """How many blocks hold all rows."""
        return -(-self.shape[0] // self.block_rows)

    def rows_of_block(self, block: int) -> tuple[int, int]:
        """Return the first row of a block and the row after its last."""
        return block * self.block_rows, min((block + 1) * self.block_rows, self.shape[0])

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk and the row after its last."""
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0])

    def chunk_file(self, root: P, chunk: int) -> P:
        """Return the file of a chunk in the store at `root`."""
        return root.joinpath(self.path, "c", str(chunk), *("0" for _ in self.shape[1:]))


def group_json(attributes: Mapping[str, Any] | None = None) -> bytes:
    """Return the metadata document of a group."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})})


def array_json(spec: ArraySpec, attributes: Mapping[str, Any] | None = None) -> bytes:
    """Return the metadata document of an array."""
    kind = np.dtype(spec.dtype)
    chunk_shape = [spec.chunk_rows, *spec.shape[1:]]
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(spec.shape),
            "data_type": spec.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if kind.kind == "f" else 0,
            "codecs": _codecs(spec),
            "attributes": dict(attributes or {}),
        }
    )


BLOSC = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "blocksize": 0}
"""Byte shuffle and zstd in the container that every Zarr v3 implementation reads."""


def _codecs(spec: ArraySpec) -> list[dict[str, Any]]:
    size = np.dtype(spec.dtype).itemsize
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain: list[dict[str, Any]] = [little if size > 1 else {"name": "bytes"}]
    if spec.compressed:
        plain.append({"name": "blosc", "configuration": {**BLOSC, "typesize": size}})
    plain.append({"name": "crc32c"})
    if not spec.inner_rows:
        return plain
    shards = {
        "chunk_shape": [spec.inner_rows, *spec.shape[1:]],
        "codecs": plain,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return [{"name": "sharding_indexed", "configuration": shards}]


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1, allow_nan=False).encode()


def read_metadata(folder: Place) -> dict[str, Any]:
    """Return the `zarr.json` of a group or array.

    Raises:
        DamagedMetadataError: it is missing or not a JSON object. StoreError: it may not be read.
    """
    path = folder / METADATA
    try:
        document = json.loads(small_content(path, _MAX_DOCUMENT))
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedMetadataError(
            f"cannot read {path} ({error}): the store is damaged, run `modegap repair` or restore it from a copy"
        ) from None
    if not isinstance(document, dict):
        raise DamagedMetadataError(
            f"{path} is not a Zarr v3 document: the store is damaged, run `modegap repair` or restore it from a copy"
        )
    return document


def column_files(path: str, values: np.ndarray, attributes: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield the (relative file, content) pairs of a whole small array, chunked along its first axis."""
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    row_bytes = max(math.prod(little.shape[1:]) * little.itemsize, 1)
    chunk_rows = max(1, min(len(little), MAX_CHUNK_BYTES // row_bytes))
    spec = ArraySpec(path, little.shape, values.dtype.name, chunk_rows)
    yield f"{path}/{METADATA}", array_json(spec, attributes)
    for chunk in range(spec.n_chunks):
        start, stop = spec.rows_of(chunk)
        content = bytes(bytes_of(little[start:stop])).ljust(spec.chunk_bytes, b"\0")
        yield spec.chunk_file(Path(), chunk).as_posix(), content + trailer(crc32c(content))


def column_spec(root: Place, path: str) -> tuple[ArraySpec, dict[str, Any]]:
    """Return the spec and the attributes of an array written by `column_files`.

    Raises:
        DamagedMetadataError: its metadata are not such an array's.
    """
    document = read_metadata(root / path)
    try:
        shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
        rows, *rest = shape
        spec = ArraySpec(path, tuple(shape), document["data_type"], chunk[0])
        valid = (
            spec.dtype in _COLUMN_DTYPES
            and all(type(size) is int and size >= 0 for size in (*shape, *chunk))
            and 1 <= spec.chunk_rows <= max(rows, 1)
            and (0 < spec.chunk_bytes <= MAX_CHUNK_BYTES or rows == 0)
            and spec.n_chunks < _MAX_COLUMN_CHUNKS
            and list(chunk[1:]) == rest
            and isinstance(document["attributes"], dict)
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        valid = False
    if not valid:
        raise DamagedMetadataError(
            f"{root / path / METADATA} does not describe a column: run `modegap repair`"
        )
    return spec, document["attributes"]


def read_column(root: Place, path: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the values (read-only) and attributes of an array written by `column_files`.

    Raises:
        DamagedChunkError: a chunk is missing or does not match its checksum.
        DamagedMetadataError: so are its metadata. StoreError: a file may not be read.
    """
    spec, attributes = column_spec(root, path)
    pieces = []
    for chunk in range(spec.n_chunks):
        file = spec.chunk_file(root, chunk)
        reason = "its content does not match its checksum"
        try:
            data = small_content(file, spec.chunk_bytes + TRAILER)
        except PermissionError as error:
            raise unreadable(file, error) from error
        except (OSError, ValueError) as error:
            data, reason = b"", f"unreadable ({getattr(error, 'strerror', None) or error})"
        content = memoryview(data)[: spec.chunk_bytes]
        if len(data) != spec.chunk_bytes + TRAILER or trailer(crc32c(content)) != data[-TRAILER:]:
            raise DamagedChunkError(
                f"{file} is damaged, {reason}: run `modegap repair`, or what wrote the store again"
            )
        pieces.append(data[: spec.chunk_bytes])
    dtype = np.dtype(spec.dtype).newbyteorder("<")
    values = np.frombuffer(b"".join(pieces), dtype=dtype)[: math.prod(spec.shape)].reshape(spec.shape)
    return values, attributes
