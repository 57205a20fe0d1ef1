"""The files of a store that hold no rows: checking them against the plan and each other, and mending them.

The root `zarr.json` has a copy and a digest of itself; every other `zarr.json` follows from the plan; row
ranges are stored once for each point of a stream, as starts and as lengths. Sample ids and labels are there
once: they come back from whoever knows the plan, when the writing is resumed with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .damage import Damage
from .durable import stage_file, sync_folder
from .errors import DamagedChunkError, StoreError
from .labels import digest, read_label, starts_of
from .layout import HEADER_COPY, Columns, Header, columns_of, parse_header, read_header, skeleton
from .origin import canonical_json, sha256
from .plan import StorePlan
from .remote import Place, RemotePath, place_of, small_content, writable
from .zarrjson import METADATA, read_column, read_metadata

_MAX_BYTES = 256 * 2**20
_AT_ONCE = 8


def read_ids(root: Place, header: Header) -> list[str]:
    """Return the sample ids.

    Raises:
        StoreError: they are damaged, or not as many as the plan says.
    """
    fixed, _ = read_column(root, "samples/id")
    if fixed.dtype != np.uint8 or fixed.ndim != 2 or len(fixed) != header.n_samples:
        raise _not_the_plans("samples/id")
    try:
        return [row.tobytes().rstrip(b"\0").decode() for row in fixed]
    except UnicodeDecodeError:
        raise _not_the_plans("samples/id") from None


def read_lengths(root: Place, header: Header, stream: str) -> np.ndarray:
    """Return int64 [samples], the token rows of each sample, from the first point of the stream that has them.

    Raises:
        DamagedChunkError: no point of the stream has lengths that match the plan. StoreError: a file cannot
            be read.
    """
    for name, info in header.points().items():
        if info.stream == stream:
            try:
                lengths, _ = read_column(root, f"points/{name}/length")
            except DamagedChunkError:
                continue
            if _planned(header, stream, lengths):
                return lengths.astype(np.int64)
            starts = _starts(root, name)
            if starts is not None and len(starts):
                lengths = np.diff(np.append(starts, header.plan["streams"][stream]["n_rows"]))
                if _planned(header, stream, lengths):
                    return lengths
    raise DamagedChunkError(
        f"the row ranges of stream {stream!r} in {root} are damaged: run what wrote the store again, with the "
        f"same settings: it rewrites them"
    )


def _starts(root: Place, point: str) -> np.ndarray | None:
    try:
        return read_column(root, f"points/{point}/start")[0]
    except StoreError:
        return None


def _planned(header: Header, stream: str, lengths: np.ndarray) -> bool:
    """Return whether these are the lengths that the plan has a digest of."""
    entry = header.plan["streams"][stream]
    if lengths.shape != (header.n_samples,) or lengths.dtype.kind != "i":
        return False
    hashed = sha256(lengths.astype("<i8").tobytes())
    total = sum(lengths.tolist()) if len(lengths) else 0
    return bool(hashed == entry["lengths"] and lengths.min() >= 0 and total == entry["n_rows"])


def _not_the_plans(path: str) -> StoreError:
    return StoreError(f"{path} does not match the plan: run `modegap verify`")


def damaged_metadata(root: Place, header: Header) -> Iterator[Damage]:
    """Yield the damage to ids, row ranges, labels and every `zarr.json`, against the plan and its digests."""
    found, damaged = _checked_columns(root, header)
    yield from damaged
    documents = [
        (name, content)
        for name, content in skeleton(header, found)
        if name.endswith(METADATA) or name == HEADER_COPY
    ]

    def check(item: tuple[str, bytes]) -> str:
        return _document_damage(root / item[0], json.loads(item[1]))

    with ThreadPoolExecutor(_AT_ONCE if isinstance(root, RemotePath) else 1) as pool:
        for (name, _), reason in zip(documents, pool.map(check, documents), strict=True):
            if reason:
                yield _damage(header, name, reason)


def _checked_columns(root: Place, header: Header) -> tuple[Columns, list[Damage]]:
    """Return the columns that are sound, and the damage of the others."""
    plan = header.plan
    damaged: list[Damage] = []
    ids: list[str] = []
    lengths: dict[str, np.ndarray] = {}
    labels = {}

    def read_samples() -> bool:
        read = read_ids(root, header)
        if sha256(canonical_json(read)) != plan["sample_ids"]:
            return False
        ids.extend(read)
        return True

    def ranges(name: str, stream: str) -> bool:
        start, _ = read_column(root, f"points/{name}/start")
        length, _ = read_column(root, f"points/{name}/length")
        if not _planned(header, stream, length) or not np.array_equal(start, starts_of(length)):
            return False
        lengths.setdefault(stream, length.astype(np.int64))
        return True

    def label(name: str, entry: Mapping[str, Any]) -> bool:
        column = read_label(root, name, entry["kind"])
        if digest(column) != entry["digest"]:
            return False
        labels[name] = column
        return True

    checks: list[tuple[str, Callable[[], bool]]] = [("samples/id", read_samples)]
    for name, info in header.points().items():
        if info.stream is not None:
            checks.append((f"points/{name}", lambda n=name, s=info.stream: ranges(n, s)))  # type: ignore[misc]
    for name, entry in plan["labels"].items():
        checks.append((f"samples/{name}", lambda n=name, e=entry: label(n, e)))  # type: ignore[misc]
    for path, check in checks:
        try:
            reason = "" if check() else "it does not match the plan"
        except (StoreError, ValueError) as error:
            reason = str(error)
        if reason:
            damaged.append(_damage(header, path, reason))
    return Columns(ids, lengths, labels), damaged


def _damage(header: Header, path: str, reason: str) -> Damage:
    everything = (0, header.n_samples)
    return Damage(path, "metadata", 0, everything, everything, reason)


def _document_damage(file: Place, wanted: dict[str, Any]) -> str:
    """Return what is wrong with a metadata document; other tools may have added to it or laid it out anew."""
    try:
        found = json.loads(small_content(file, _MAX_BYTES))
        notes = found.pop("attributes")
        found.pop("consolidated_metadata", None)
        for optional in ("storage_transformers", "dimension_names"):
            if not any(found.get(optional) or ()):
                found.pop(optional, None)
        attributes = wanted.pop("attributes")
        same = found == wanted and {**notes, **attributes} == notes
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"it cannot be read ({error})"
    return "" if same else "it does not match the plan"


def mend_metadata(root: Place, header: Header, damaged: list[Damage]) -> tuple[list[Damage], list[Damage]]:
    """Rewrite the damaged metadata that follow from the plan or a copy; return (mended, lost).

    Raises:
        OSError: the disk is full, read-only or broken.
    """
    if not damaged:
        return [], []
    found, _ = _checked_columns(root, header)
    lengths = dict(found.lengths)
    for stream in header.plan["streams"]:
        if stream not in lengths:
            try:
                lengths[stream] = read_lengths(root, header, stream)
            except DamagedChunkError:
                continue
    bad = {piece.point for piece in damaged}
    written: set[str] = set()
    for name, content in skeleton(header, Columns(found.ids, lengths, found.labels)):
        owners = {path for path in bad if name == path or _is_column_of(name, path)}
        if owners:
            _replace(root, name, content)
            written |= owners
    return [p for p in damaged if p.point in written], [p for p in damaged if p.point not in written]


def _is_column_of(name: str, path: str) -> bool:
    """Return whether a file is one of the row ranges of `points/<name>`: ids and labels follow from nothing."""
    return (
        path.startswith("points/")
        and path.count("/") == 1
        and name.startswith((f"{path}/start/", f"{path}/length/"))
    )


def complete_skeleton(root: Place, header: Header, plan: StorePlan) -> list[str]:
    """Rewrite what is missing or damaged of a store's metadata, given its plan; return those files.

    Raises:
        OSError: the disk is full, read-only or broken.
    """

    def complete(item: tuple[str, bytes]) -> str | None:
        name, content = item
        if name.endswith(METADATA) or name == HEADER_COPY:
            sound = not _document_damage(root / name, json.loads(content))
        else:
            try:
                sound = small_content(root / name, len(content)) == content
            except (FileNotFoundError, ValueError):
                sound = False
        if not sound:
            _replace(root, name, content)
        return None if sound else name

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [name for name in pool.map(complete, skeleton(header, columns_of(plan))) if name]


def _replace(root: Place, name: str, content: bytes) -> None:
    file = root / name
    if isinstance(file, RemotePath):
        file.write_bytes(content)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    stage_file(file, content).replace(file)
    sync_folder(file.parent)


def restore_header(path: str) -> bool:
    """Restore a damaged root `zarr.json` from its copy; return whether that was needed.

    Raises:
        StoreError: there is no store, or the copy is damaged too.
    """
    root = writable(place_of(path))
    try:
        read_header(root)
        return False
    except StoreError as error:
        problem = error
    try:
        content = small_content(root / HEADER_COPY, _MAX_BYTES)
        attributes = json.loads(content)["attributes"]
        parse_header(attributes, str(root / HEADER_COPY))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StoreError):
        raise problem from None
    _replace(root, METADATA, content)
    read_metadata(root)
    return True
