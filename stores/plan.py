"""What a store will hold: known before the first row is written, because texts are tokenised first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from .labels import LabelColumn, digest, label_column, starts_of
from .names import check_name, check_names
from .origin import VOLATILE, canonical_json, sha256
from .zarrjson import MAX_CHUNK_BYTES

Rows = Literal["tokens", "pooled", "both"]
RowDtype = Literal["float16", "float32"]

Profile = Literal["raw", "sharded", "archive"]

PROFILES = get_args(Profile)
MAX_SHARD_BYTES = 256 * 2**20
_PAGE = 4096
# Pooled rows and token columns fill slowly: smaller chunks keep what an interruption costs near 100 samples.
_POOLED_CHUNK_ROWS = 128
_TOKEN_CHUNK_ROWS = 2**14
_MAX_ID_BYTES = 255


@dataclass(frozen=True, slots=True, eq=False)
class PointPlan:
    """What is stored at one hook point.

    Attributes:
        width: features a row.
        rows: "tokens" (one row a token), "pooled" (one row a sample) or "both".
        lengths: int64 [samples], the token rows of each sample; None for "pooled".
        dtype: "float16", or "float32" for rows that fp16 cannot hold even scaled.
        stream: the token sequence its rows follow; points of one stream share lengths, ids and modality. By
            default the point's own name.
    """

    width: int
    rows: Rows
    lengths: np.ndarray | None = None
    dtype: RowDtype = "float16"
    stream: str | None = None

    def __post_init__(self) -> None:
        """Check the fields and make `lengths` a read-only int64 copy."""
        if isinstance(self.width, bool) or not isinstance(self.width, int | np.integer) or self.width < 1:
            raise ValueError(f"width must be a positive integer, got {self.width!r}")
        if self.rows not in get_args(Rows):
            raise ValueError(f"rows must be one of {', '.join(get_args(Rows))}, got {self.rows!r}")
        if self.dtype not in get_args(RowDtype):
            raise ValueError(f"dtype must be one of {', '.join(get_args(RowDtype))}, got {self.dtype!r}")
        if self.rows == "pooled":
            if self.lengths is not None or self.stream is not None:
                raise ValueError(
                    "lengths and stream belong to token rows: leave them out where rows='pooled'"
                )
            return
        given = np.asarray(self.lengths)
        if self.lengths is None or given.ndim != 1 or given.dtype.kind not in "iu" or (given < 0).any():
            raise ValueError(
                f"token rows need lengths: one non-negative integer a sample, got {self.lengths!r:.80}"
            )
        lengths = given.astype(np.int64)
        lengths.flags.writeable = False
        object.__setattr__(self, "lengths", lengths)


@dataclass(frozen=True, slots=True)
class PointInfo:
    """A hook point as stored. `n_rows` and `chunk_rows` count token rows and are 0 where it has none.

    `shard_rows` is a multiple of `chunk_rows`, 0 where token rows are not sharded.
    """

    name: str
    width: int
    rows: Rows
    dtype: RowDtype
    stream: str | None
    n_rows: int
    chunk_rows: int
    pooled_chunk_rows: int
    shard_rows: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class StorePlan:
    """Everything a store will hold, except the rows.

    Attributes:
        points: name to `PointPlan`.
        sample_ids: unique strings of 1 to 255 UTF-8 bytes.
        labels: name to one value a sample (str, int, float or None), or a `LabelColumn`.
        provenance: free JSON; see `provenance()` for the standard keys.
        chunk_bytes: size of a chunk of token rows, at most 16 MiB; rounded down to whole rows.
        profile: "raw" (each chunk a file); "sharded" (token rows in files of up to `shard_bytes`: for object
            stores and above about a million chunks); "archive" (rows byte-shuffled and compressed with zstd:
            smaller by a seventh, read at below 1 GB/s).
        shard_bytes: size of a shard, at most 256 MiB; rounded down to whole chunks. A writer's memory is one
            shard for each point and those on their way.

    Raises:
        ValueError: a name, id, length, label or provenance value is not allowed; the message says which.
    """

    points: Mapping[str, PointPlan]
    sample_ids: Sequence[str]
    labels: Mapping[str, Sequence[Any] | LabelColumn] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    chunk_bytes: int = MAX_CHUNK_BYTES
    profile: Profile = "raw"
    shard_bytes: int = 4 * MAX_CHUNK_BYTES

    def __post_init__(self) -> None:
        """Check everything and turn the labels into `LabelColumn`s."""
        ids = tuple(self.sample_ids)
        if not ids:
            raise ValueError("a store needs at least one sample id, got none")
        if not self.points:
            raise ValueError("a store needs at least one point, got none")
        if not 1 <= self.chunk_bytes <= MAX_CHUNK_BYTES:
            raise ValueError(f"chunk_bytes must be 1 to {MAX_CHUNK_BYTES}, got {self.chunk_bytes}")
        if self.profile not in PROFILES:
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {self.profile!r}")
        if not self.chunk_bytes <= self.shard_bytes <= MAX_SHARD_BYTES:
            raise ValueError(f"shard_bytes must be chunk_bytes to {MAX_SHARD_BYTES}, got {self.shard_bytes}")
        _check_ids(ids)
        check_names("point", self.points)
        check_names("stream", sorted({p.stream for p in self.points.values() if p.stream is not None}))
        if "id" in map(str.lower, check_names("label", self.labels)):
            raise ValueError("label name 'id' is taken by the sample ids: rename the label")
        canonical_json(dict(self.provenance))
        object.__setattr__(self, "sample_ids", ids)
        columns = {name: label_column(name, values, ids) for name, values in self.labels.items()}
        object.__setattr__(self, "labels", columns)
        for name, lengths in self.streams().items():
            if len(lengths) != len(ids):
                raise ValueError(
                    f"stream {name!r} needs one length a sample: got {len(lengths)}, expected {len(ids)}"
                )

    def columns(self) -> dict[str, LabelColumn]:
        """Return the checked label columns by name."""
        return {name: column for name, column in self.labels.items() if isinstance(column, LabelColumn)}

    def streams(self) -> dict[str, np.ndarray]:
        """Return the token lengths (int64 [samples]) of each stream.

        Raises:
            ValueError: points of one stream have different lengths.
        """
        found: dict[str, np.ndarray] = {}
        for name, point in self.points.items():
            if point.lengths is None:
                continue
            stream = check_name("stream", point.stream or name)
            if not np.array_equal(found.setdefault(stream, point.lengths), point.lengths):
                raise ValueError(f"point {name!r} has other lengths than the rest of its stream {stream!r}")
        return found

    def infos(self) -> dict[str, PointInfo]:
        """Return the layout of each point."""
        return {name: self._info(name, point) for name, point in self.points.items()}

    def _info(self, name: str, point: PointPlan) -> PointInfo:
        row_bytes = point.width * np.dtype(point.dtype).itemsize
        n_rows = 0 if point.lengths is None else int(point.lengths.sum())
        pooled_bytes = min(self.chunk_bytes, _POOLED_CHUNK_ROWS * row_bytes)
        chunk_rows = 0 if point.rows == "pooled" else _chunk_rows(self.chunk_bytes, row_bytes, n_rows)
        return PointInfo(
            name=name,
            width=int(point.width),
            rows=point.rows,
            dtype=point.dtype,
            stream=None if point.lengths is None else point.stream or name,
            n_rows=n_rows,
            chunk_rows=chunk_rows,
            pooled_chunk_rows=0
            if point.rows == "tokens"
            else _chunk_rows(pooled_bytes, row_bytes, len(self.sample_ids)),
            shard_rows=self._shard_rows(chunk_rows, row_bytes, n_rows),
        )

    def _shard_rows(self, chunk_rows: int, row_bytes: int, n_rows: int) -> int:
        if self.profile != "sharded" or chunk_rows == 0:
            return 0
        chunks = max(1, self.shard_bytes // (chunk_rows * row_bytes))
        return chunk_rows * min(chunks, max(1, -(-n_rows // chunk_rows)))

    def stream_chunk_rows(self, n_rows: int) -> int:
        """Return the rows a chunk of a token column of `n_rows` rows."""
        return max(1, min(_TOKEN_CHUNK_ROWS, self.chunk_bytes // 4, n_rows))

    def nbytes(self) -> int:
        """Return the bytes of all chunks, padding included, checksums, metadata and compression not."""
        total = 0
        for info in self.infos().values():
            row_bytes = info.width * np.dtype(info.dtype).itemsize
            total += _padded(info.n_rows, info.chunk_rows) * row_bytes
            total += _padded(len(self.sample_ids), info.pooled_chunk_rows) * row_bytes
        for lengths in self.streams().values():
            n_rows = int(lengths.sum())
            total += 5 * _padded(n_rows, self.stream_chunk_rows(n_rows))
        return total

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON, long columns as digests: what `zarr.json` keeps and `plan_hash` covers."""
        points = {}
        for name, info in self.infos().items():
            fields = ("width", "rows", "dtype", "stream", "n_rows", "chunk_rows", "pooled_chunk_rows")
            points[name] = {key: getattr(info, key) for key in fields}
            if info.shard_rows:
                points[name]["shard_rows"] = info.shard_rows
        streams = {}
        for name, lengths in self.streams().items():
            n_rows = int(lengths.sum())
            hashed = sha256(lengths.astype("<i8").tobytes())
            streams[name] = {
                "n_rows": n_rows,
                "chunk_rows": self.stream_chunk_rows(n_rows),
                "lengths": hashed,
            }
        labels = {name: {"kind": col.kind, "digest": digest(col)} for name, col in self.columns().items()}
        # Left out where it is "raw": such a plan keeps the hash it had before there were profiles.
        profile = {} if self.profile == "raw" else {"profile": self.profile}
        return profile | {
            "n_samples": len(self.sample_ids),
            "sample_ids": sha256(canonical_json(list(self.sample_ids))),
            "points": points,
            "streams": streams,
            "labels": labels,
        }

    def starts(self) -> dict[str, np.ndarray]:
        """Return the first row (int64 [samples]) of each sample in each stream."""
        return {name: starts_of(lengths) for name, lengths in self.streams().items()}


def plan_hash(plan: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a described plan and its provenance without `created` and `versions`."""
    stable = {key: value for key, value in provenance.items() if key not in VOLATILE}
    return sha256(canonical_json({"plan": plan, "provenance": stable}))


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line for every entry that differs between a store's description and a plan's."""
    lines: list[str] = []
    for key in dict.fromkeys((*theirs, *ours)):
        old, new = theirs.get(key), ours.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} is {old!r:.80} in the store, {new!r:.80} in the plan")
    return lines


def _check_ids(ids: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for index, sample in enumerate(ids):
        if not isinstance(sample, str) or not sample or "\0" in sample:
            raise ValueError(f"sample id {index} must be a non-empty string without NUL, got {sample!r}")
        try:
            size = len(sample.encode())
        except UnicodeEncodeError:
            raise ValueError(f"sample id {index} is not valid Unicode: {sample!r}") from None
        if size > _MAX_ID_BYTES:
            raise ValueError(
                f"sample id {index} has {size} UTF-8 bytes, at most {_MAX_ID_BYTES} fit: {sample!r:.60}"
            )
        if sample in seen:
            raise ValueError(f"sample id {sample!r} occurs twice: ids must be unique")
        seen.add(sample)


def _chunk_rows(chunk_bytes: int, row_bytes: int, n_rows: int) -> int:
    """Return rows a chunk: as many as fit, in whole pages where one fits, never more than there are."""
    rows = max(1, chunk_bytes // row_bytes)
    page_rows = _PAGE // math.gcd(_PAGE, row_bytes)
    if rows >= page_rows:
        rows -= rows % page_rows
    return max(1, min(rows, n_rows))


def _padded(n_rows: int, chunk_rows: int) -> int:
    return 0 if chunk_rows == 0 else -(-n_rows // chunk_rows) * chunk_rows
