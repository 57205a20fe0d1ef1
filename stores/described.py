"""Checking the plan that a `zarr.json` describes: a store may have been made, or changed, by anyone.

Its names become folders and its numbers become sizes of buffers, so nothing is taken on trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from .labels import Kind
from .names import check_name, check_names
from .plan import MAX_SHARD_BYTES, PROFILES, RowDtype, Rows
from .zarrjson import MAX_CHUNK_BYTES

_MAX_SAMPLES = 2**28
_MAX_ROWS = 2**48
_MAX_FILES = 2**28
_MAX_WIDTH = 2**24
_ITEMSIZE = {"float16": 2, "float32": 4}


def check_described(plan: Any, provenance: Any) -> None:
    """Return if the plan is one that `StorePlan.describe` can give.

    Raises:
        ValueError: it is not; the message says where.
    """
    if not isinstance(plan, Mapping) or not isinstance(provenance, Mapping):
        raise ValueError("plan and provenance must be objects")
    if plan.get("profile", "raw") not in PROFILES:
        raise ValueError(f"unknown profile {plan['profile']!r:.40}")
    n_samples = _whole(plan, "n_samples", 1, _MAX_SAMPLES)
    _text(plan, "sample_ids")
    points, streams, labels = (_mapping(plan, key) for key in ("points", "streams", "labels"))
    check_names("point", points)
    check_names("stream", streams)
    if "id" in map(str.lower, check_names("label", labels)):
        raise ValueError("label name 'id' is taken by the sample ids")
    if not points:
        raise ValueError("it has no points")
    for name, stream in streams.items():
        _keys(stream, f"stream {name!r}", {"n_rows", "chunk_rows", "lengths"})
        _text(stream, "lengths")
        n_rows = _whole(stream, "n_rows", 0, _MAX_ROWS)
        _chunks(stream, "chunk_rows", n_rows, 4, MAX_CHUNK_BYTES)
    for name, entry in labels.items():
        _keys(entry, f"label {name!r}", {"kind", "digest"})
        _text(entry, "digest")
        if entry["kind"] not in get_args(Kind):
            raise ValueError(f"label {name!r} has kind {entry['kind']!r:.40}")
    used = {_check_point(f"point {name!r}", point, streams, n_samples) for name, point in points.items()}
    if used - {None} != set(streams):
        raise ValueError("its streams are not those of its points")


def _check_point(where: str, point: Any, streams: Mapping[str, Any], n_samples: int) -> str | None:
    """Check a point and return its stream."""
    needed = {"width", "rows", "dtype", "stream", "n_rows", "chunk_rows", "pooled_chunk_rows"}
    _keys(point, where, needed, {"shard_rows"})
    rows, dtype, stream = point["rows"], point["dtype"], point["stream"]
    if rows not in get_args(Rows) or dtype not in get_args(RowDtype):
        raise ValueError(f"{where} has rows {rows!r:.40}, dtype {dtype!r:.40}")
    row_bytes = _whole(point, "width", 1, _MAX_WIDTH) * _ITEMSIZE[dtype]
    shard_rows = _whole(point, "shard_rows", 1, MAX_SHARD_BYTES) if "shard_rows" in point else 0
    if rows == "pooled":
        if stream is not None or point["n_rows"] != 0 or point["chunk_rows"] != 0 or shard_rows:
            raise ValueError(f"{where} has pooled rows only, and yet token rows")
    else:
        check_name("stream", stream)
        if stream not in streams or point["n_rows"] != streams[stream]["n_rows"]:
            raise ValueError(f"{where} has another number of rows than its stream")
        chunk_rows = _chunks(point, "chunk_rows", point["n_rows"], row_bytes, MAX_CHUNK_BYTES)
        if shard_rows % chunk_rows or shard_rows * row_bytes > max(MAX_SHARD_BYTES, row_bytes):
            raise ValueError(f"{where} has shards of {shard_rows} rows")
    if rows != "tokens":
        _chunks(point, "pooled_chunk_rows", n_samples, row_bytes, MAX_CHUNK_BYTES)
    elif point["pooled_chunk_rows"] != 0:
        raise ValueError(f"{where} has token rows only, and yet pooled chunks")
    return stream if isinstance(stream, str) else None


def _keys(entry: Any, where: str, needed: set[str], more: frozenset[str] | set[str] = frozenset()) -> None:
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= needed | more:
        raise ValueError(f"{where} must have {', '.join(sorted(needed))} and nothing else")


def _mapping(plan: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = plan.get(key)
    if not isinstance(found, Mapping):
        raise ValueError(f"{key} must be an object")
    return found


def _text(entry: Mapping[str, Any], key: str) -> None:
    if not isinstance(entry.get(key), str):
        raise ValueError(f"{key} must be a text")


def _whole(entry: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = entry.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{key} must be a whole number from {low} to {high}, got {value!r:.40}")
    return value


def _chunks(entry: Mapping[str, Any], key: str, n_rows: int, row_bytes: int, most: int) -> int:
    """Check rows a chunk: never more than there are rows, and one row may be as large as it is."""
    chunk_rows = _whole(entry, key, 1, max(1, most // row_bytes, 1))
    if chunk_rows > max(1, n_rows) or n_rows > _MAX_FILES * chunk_rows:
        raise ValueError(f"{key} {chunk_rows} does not divide {n_rows} rows into at most {_MAX_FILES} chunks")
    return chunk_rows
