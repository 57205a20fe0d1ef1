"""Where everything of a store is: the arrays behind the points and streams of its plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .described import check_described
from .errors import DamagedMetadataError, StoreError, gone, unreadable
from .labels import LabelColumn, label_files, starts_of
from .origin import canonical_json, sha256
from .plan import PROFILES, PointInfo, StorePlan, plan_hash
from .remote import Place, RemotePath
from .zarrjson import METADATA, ArraySpec, array_json, column_files, group_json, read_metadata

SCHEMA_VERSION = 1
HEADER_COPY = "_commit/header.json"
"""A second copy of the root `zarr.json`, without which nothing of a store could be read."""

_FORMAT = "modegap activation store"

ArrayKind = Literal["tokens", "pooled", "ids", "modality"]


@dataclass(frozen=True, slots=True)
class StoredArray:
    """A chunked array of the store: `owner` is its point (or its stream, for ids and modality)."""

    owner: str
    kind: ArrayKind
    spec: ArraySpec
    stream: str | None

    def sample_rows(self, starts: Mapping[str, np.ndarray], n_samples: int) -> np.ndarray:
        """Return int64 [samples + 1]: the first row of each sample, then the number of rows."""
        if self.stream is None:
            return np.arange(n_samples + 1)
        return np.append(starts[self.stream], self.spec.shape[0])


@dataclass(frozen=True, slots=True)
class Header:
    """What the root `zarr.json` says: schema version 1, plan, provenance."""

    plan: Mapping[str, Any]
    provenance: Mapping[str, Any]
    plan_hash: str

    @property
    def profile(self) -> str:
        """How rows are laid out: "raw", "sharded" or "archive"."""
        return str(self.plan.get("profile", "raw"))

    @property
    def n_samples(self) -> int:
        """Samples of the plan, stored or not."""
        return int(self.plan["n_samples"])

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the root group.

        Raises:
            ValueError: provenance holds what JSON cannot say.
        """
        return {**self._described(), "digest": self.digest()}

    def digest(self) -> str:
        """Return the SHA-256 of everything the header says; `plan_hash` leaves what may differ out."""
        return sha256(canonical_json(self._described()))

    def _described(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "schema_version": SCHEMA_VERSION,
            "profile": self.profile,
            "plan_hash": self.plan_hash,
            "provenance": self.provenance,
            "plan": self.plan,
        }

    def points(self) -> dict[str, PointInfo]:
        """Return the points by name."""
        return {name: PointInfo(name=name, **fields) for name, fields in self.plan["points"].items()}

    def arrays(self) -> list[StoredArray]:
        """Return every chunked array: rows of each point, then the columns of each stream."""
        found = []
        packed = self.profile == "archive"
        for name, info in self.points().items():
            if info.rows != "pooled":
                shape, inner = (info.n_rows, info.width), info.chunk_rows if info.shard_rows else 0
                chunk_rows = info.shard_rows or info.chunk_rows
                spec = ArraySpec(f"points/{name}/rows", shape, info.dtype, chunk_rows, inner, packed)
                found.append(StoredArray(name, "tokens", spec, info.stream))
            if info.rows != "tokens":
                shape = (self.n_samples, info.width)
                rows = info.pooled_chunk_rows
                spec = ArraySpec(f"pooled/{name}/rows", shape, info.dtype, rows, compressed=packed)
                found.append(StoredArray(name, "pooled", spec, None))
        for name, stream in self.plan["streams"].items():
            shape1 = (stream["n_rows"],)
            ids = ArraySpec(f"tokens/{name}/ids", shape1, "int32", stream["chunk_rows"])
            modality = ArraySpec(f"tokens/{name}/modality", shape1, "uint8", stream["chunk_rows"])
            found += [StoredArray(name, "ids", ids, name), StoredArray(name, "modality", modality, name)]
        return found


def make_header(plan: StorePlan) -> Header:
    """Return the header of a new store.

    Raises:
        ValueError: the plan is larger than a store can be.
    """
    described = plan.describe()
    provenance = dict(plan.provenance)
    check_described(described, provenance)
    return Header(described, provenance, plan_hash(described, provenance))


def read_header(root: Place) -> Header:
    """Return the header of the store at `root`.

    Raises:
        StoreError: nothing there, not a store of this format, a newer schema, or a damaged header.
    """
    try:
        if not root.exists():
            if isinstance(root, RemotePath):
                with suppress(FileNotFoundError):
                    (
                        root / METADATA
                    ).read_bytes()  # a server that does not answer has been taken for an empty place
            raise StoreError(f"no store at {root}: check the path, or make one with `modegap extract`")
        if not (root / METADATA).is_file():
            # Elsewhere than on a disk it may be on its way: there `zarr.json` is created last.
            if isinstance(root, Path) and (root / HEADER_COPY).is_file():
                raise DamagedMetadataError(f"{root} has lost its {METADATA}: run `modegap repair`")
            raise StoreError(f"{root} is not an activation store (no {METADATA} in it): check the path")
    except OSError as error:
        raise unreadable(root, error) from error
    attributes = read_metadata(root).get("attributes", {})
    if not isinstance(attributes, Mapping) or attributes.get("format") != _FORMAT:
        raise StoreError(
            f"{root} holds other Zarr data, not an activation store: check the path, or use `modegap import`"
        )
    return parse_header(attributes, str(root / METADATA))


def check_there(root: Place) -> None:
    """Return if there is still a store at `root`.

    Raises:
        StoreError: it has been deleted or moved.
    """
    try:
        there = (root / METADATA).is_file()
    except OSError as error:
        raise unreadable(root, error) from error
    if not there:
        raise gone(root)


def parse_header(attributes: Mapping[str, Any], where: str) -> Header:
    """Return the header that the attributes of a root group hold; `where` names their file.

    Raises:
        StoreError: they are of a newer schema, or damaged.
    """
    version, profile = attributes.get("schema_version"), attributes.get("profile")
    if version != SCHEMA_VERSION or profile not in PROFILES:
        raise StoreError(
            f"{where} has schema version {version!r:.40}, profile {profile!r:.40}; this modegap reads version "
            f"{SCHEMA_VERSION}, profiles {', '.join(PROFILES)}: upgrade modegap (pip install -U modegap); "
            f"if the file is damaged, run `modegap repair`"
        )
    try:
        header = Header(attributes["plan"], attributes["provenance"], attributes["plan_hash"])
        check_described(header.plan, header.provenance)
    except KeyError as error:
        message = (
            f"{where} lacks the attribute {error}: run `modegap repair`, or restore the file from a copy"
        )
        raise StoreError(message) from None
    except ValueError as error:
        raise StoreError(
            f"the plan in {where} is not valid ({error}): run `modegap repair`, or restore the file from a copy"
        ) from None
    digest = attributes.get("digest", header.digest())
    if plan_hash(header.plan, header.provenance) != header.plan_hash or header.profile != profile:
        digest = None
    if digest != header.digest():
        raise StoreError(
            f"the plan in {where} does not match its hash: run `modegap repair`, or restore the file from a copy"
        )
    return header


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What is known of all samples before the first row: ids, token lengths by stream, labels."""

    ids: Sequence[str]
    lengths: Mapping[str, np.ndarray]
    labels: Mapping[str, LabelColumn]


def columns_of(plan: StorePlan) -> Columns:
    """Return the columns of a plan."""
    return Columns(plan.sample_ids, plan.streams(), plan.columns())


def skeleton(header: Header, columns: Columns) -> Iterator[tuple[str, bytes]]:
    """Yield the (relative file, content) pairs of a store without rows: metadata, ids, labels, row ranges."""
    root = group_json(header.attributes())
    yield METADATA, root
    yield HEADER_COPY, root
    arrays = header.arrays()
    groups = {"samples", *(part for array in arrays for part in _groups_above(array.spec.path))}
    for group in sorted(groups):
        yield f"{group}/{METADATA}", group_json()
    for array in arrays:
        notes = {"committed": f"_commit/{array.spec.path}/<chunk>.json"}
        if array.kind in ("tokens", "pooled"):
            notes["true_value"] = "stored value * 2**exponent of the chunk's commit record"
        yield f"{array.spec.path}/{METADATA}", array_json(array.spec, notes)
    for name, info in header.points().items():
        if info.stream is not None and info.stream in columns.lengths:
            lengths = columns.lengths[info.stream]
            yield from column_files(f"points/{name}/start", starts_of(lengths), {})
            yield from column_files(f"points/{name}/length", lengths, {})
    if columns.ids:
        encoded = np.array([sample.encode() for sample in columns.ids])
        fixed = encoded.view(np.uint8).reshape(len(encoded), -1)
        yield from column_files("samples/id", fixed, {"encoding": "UTF-8, padded with zeros"})
    for name, column in columns.labels.items():
        yield from label_files(name, column)


def _groups_above(path: str) -> Iterator[str]:
    parts = path.split("/")
    for depth in range(1, len(parts)):
        yield "/".join(parts[:depth])
