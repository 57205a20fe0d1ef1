"""`ActivationStore`: activations on disk with their row ranges, token columns, labels and provenance."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Self

import numpy as np

from .commits import CommitLog
from .creation import build, make_folders, occupied, refuse_links
from .errors import DamagedChunkError, StoreError, disk_error, unknown_name
from .labels import LabelColumn, read_label, starts_of
from .layout import (
    SCHEMA_VERSION,
    Header,
    StoredArray,
    check_there,
    make_header,
    read_header,
)
from .metadata import complete_skeleton, read_ids, read_lengths
from .origin import VOLATILE, canonical_json, sha256
from .plan import PointInfo, StorePlan, differences
from .ranges import Ranges, samples_touching
from .reading import ChunkedArray
from .remote import Place, RemotePath, place_of, writable
from .rows import RowArray
from .writer import Writer

RowKind = Literal["tokens", "pooled"]
Mode = Literal["r", "r+"]

_SHOWN_DIFFERENCES = 5
_SEARCHED = 2000
"""Ids among which the nearest to an unknown one is looked for: a second for a million would be too long."""


class ActivationStore:
    """A store on disk; make one with `create`, look at one with `open`.

    It is a Zarr v3 group, so any Zarr tool reads it too. What is committed is listed when first needed: call
    `refresh` to see what another process has written since.
    """

    def __init__(self, root: Place, header: Header, mode: Mode) -> None:
        """Use `ActivationStore.open` or `ActivationStore.create` instead."""
        self.path, self.mode = root, mode
        self.header = self._header = header
        self._arrays = header.arrays()
        self._logs = {array.spec.path: CommitLog(root, array.spec) for array in self._arrays}

    @classmethod
    def create(cls, path: str | os.PathLike[str], plan: StorePlan, *, exist_ok: bool = False) -> Self:
        """Return a new store without rows, open for writing.

        The store appears at `path` complete or not at all. With `exist_ok`, a store of the same plan that is
        there already is opened instead, to be resumed.

        Raises:
            StoreError: something else is at `path` (the message says what differs), or the disk is full or
            read-only. ValueError: a label is not valid Unicode.
        """
        root = writable(place_of(path))
        header = make_header(plan)
        try:
            taken = occupied(root)
        except OSError as error:
            raise disk_error(error, root, 0) from error
        if taken or not build(root, plan, header):
            return cls._existing(root, plan, header, exist_ok)
        return cls(root, header, "r+")

    @classmethod
    def _existing(cls, root: Place, plan: StorePlan, wanted: Header, exist_ok: bool) -> Self:
        if not exist_ok:
            raise StoreError(
                f"{root} exists already: pass exist_ok=True to resume it, or choose another path"
            )
        header = read_header(root)
        if header.plan_hash != wanted.plan_hash:
            lines = differences(_comparable(header), _comparable(wanted))
            more = f" and {len(lines) - _SHOWN_DIFFERENCES} more" if len(lines) > _SHOWN_DIFFERENCES else ""
            raise StoreError(
                f"{root} was made with another plan: {'; '.join(lines[:_SHOWN_DIFFERENCES])}{more}: "
                f"use the same settings to resume it, or choose another path"
            )
        try:
            # The plan says what the metadata were, so damage to them ends here.
            refuse_links(root, header)
            complete_skeleton(root, header, plan)
            if not isinstance(root, RemotePath):
                make_folders(root, header)
        except OSError as error:
            raise disk_error(error, root, 2**20) from error
        return cls(root, header, "r+")

    @classmethod
    def open(cls, path: str | os.PathLike[str], mode: Mode = "r") -> Self:
        """Return the store at `path`, for reading ("r") or to resume writing ("r+").

        A URL is opened through fsspec; its files must be listable, and for writing its server must be able to
        create an object only where there is none, as S3 and Google's storage are.

        Raises:
            StoreError: nothing there, not a store, a newer schema version, damaged metadata, or no writing
            where it was asked for.
            ValueError: another mode.
        """
        if mode not in ("r", "r+"):
            raise ValueError(f"mode must be 'r' or 'r+', got {mode!r}")
        root = place_of(path)
        if mode == "r+":
            refuse_links(root, read_header(root))
            writable(root)
        return cls(root, read_header(root), mode)

    @property
    def schema_version(self) -> int:
        """Version of the format."""
        return SCHEMA_VERSION

    @property
    def plan_hash(self) -> str:
        """SHA-256 of points, ids, lengths, labels and provenance (without `created` and `versions`)."""
        return self._header.plan_hash

    @property
    def provenance(self) -> dict[str, Any]:
        """What produced the store; a copy."""
        copy: dict[str, Any] = json.loads(canonical_json(dict(self._header.provenance)))
        return copy

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as `zarr.json` describes it (long columns as digests); a copy."""
        copy: dict[str, Any] = json.loads(canonical_json(dict(self._header.plan)))
        return copy

    @property
    def arrays(self) -> list[StoredArray]:
        """Every chunked array: rows of the points, then ids and modality of the streams."""
        return list(self._arrays)

    @cached_property
    def points(self) -> dict[str, PointInfo]:
        """The hook points by name."""
        return self._header.points()

    @cached_property
    def samples(self) -> list[str]:
        """The sample ids, stored or not."""
        with self._still_there():
            return read_ids(self.path, self._header)

    def sample_index(self, sample_id: str) -> int:
        """Return the index of a sample, for `RowArray.sample`.

        Raises:
            StoreError: there is no such sample (the message suggests the nearest id).
        """
        index = self._indices.get(sample_id)
        if index is None:
            near = difflib.get_close_matches(str(sample_id), self.samples[:_SEARCHED], n=1, cutoff=0.5)
            hint = f", did you mean {near[0]!r}?" if near else ": `samples` has their ids"
            raise StoreError(f"no sample {sample_id!r} among the {len(self.samples)} of {self.path}{hint}")
        return index

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {sample: index for index, sample in enumerate(self.samples)}

    @cached_property
    def labels(self) -> dict[str, LabelColumn]:
        """The label columns by name."""
        planned = self._header.plan["labels"]
        with self._still_there():
            found = {name: read_label(self.path, name, entry["kind"]) for name, entry in planned.items()}
        for name, column in found.items():
            if len(column.values) != self._header.n_samples:
                raise StoreError(f"label {name!r} has {len(column.values)} values: run `modegap verify`")
        return found

    @cached_property
    def _starts(self) -> dict[str, np.ndarray]:
        """First row of each sample, by stream."""
        streams = self._header.plan["streams"]
        with self._still_there():
            return {name: starts_of(read_lengths(self.path, self._header, name)) for name in streams}

    @contextmanager
    def _still_there(self) -> Iterator[None]:
        """Say that the store is gone where that is why something of it is missing."""
        try:
            yield
        except DamagedChunkError:
            self.check_there()
            raise

    def check_there(self) -> None:
        """Return if the store is still where it was opened.

        Raises:
            StoreError: it has been deleted or moved.
        """
        check_there(self.path)

    def bounds(self, array: StoredArray) -> np.ndarray:
        """Return int64 [samples + 1] of an array: the first row of each sample, then the number of rows."""
        return array.sample_rows(self._starts, self._header.n_samples)

    def commits(self, array: StoredArray) -> CommitLog:
        """Return the commit records of an array."""
        return self._logs[array.spec.path]

    def refresh(self) -> None:
        """Look again at what is committed."""
        for log in self._logs.values():
            log.refresh()

    def complete_samples(self) -> np.ndarray:
        """Return bool [samples]: whether every row of the sample, at every point, is committed."""
        complete = np.ones(self._header.n_samples, dtype=bool)
        for array in self._arrays:
            missing = ~self.commits(array).committed
            complete &= ~samples_touching(self.bounds(array), array.spec.chunk_rows, missing)
        return complete

    @property
    def n_complete(self) -> int:
        """How many samples are complete."""
        return int(self.complete_samples().sum())

    def rows(self, point: str, kind: RowKind = "tokens") -> RowArray:
        """Return the token or pooled rows of a point, as far as they are complete now.

        Raises:
            StoreError: unknown point (the message suggests the nearest), or it has no rows of this kind.
            ValueError: another kind.
        """
        if kind not in ("tokens", "pooled"):
            raise ValueError(f"kind must be 'tokens' or 'pooled', got {kind!r}")
        if point not in self.points:
            raise StoreError(unknown_name("point", point, self.points))
        found = {(array.kind, array.owner): array for array in self._arrays}
        array = found.get((kind, point))
        if array is None:
            other = "pooled" if kind == "tokens" else "tokens"
            raise StoreError(
                f"point {point!r} has no {kind} rows in this store: use kind={other!r}, or extract them"
            )
        ranges = Ranges(self.bounds(array), self.complete_samples())
        columns: dict[str, ChunkedArray] = {}
        if array.stream is not None:
            columns = {
                name: self._chunked(column, ranges)
                for (name, owner), column in found.items()
                if name in ("ids", "modality") and owner == array.stream
            }
        return RowArray(self._chunked(array, ranges), self.commits(array), ranges, columns)

    def to_dask(self, point: str, kind: RowKind | None = None) -> Any:
        """Return a Dask array of the true values of a point's complete rows [n, d], one block a chunk.

        `kind` None takes token rows where the store has them.

        Raises:
            StoreError: Dask is not installed, or as `rows`.
        """
        from .lazyarrays import dask_array

        return dask_array(self, point, kind or self._kind_of(point))

    def to_xarray(self, point: str, kind: RowKind | None = None) -> Any:
        """Return an xarray Dataset of the same: `rows` (row or sample, channel), with ids and labels as coordinates.

        Raises:
            StoreError: Dask or xarray is not installed, or as `rows`.
        """
        from .lazyarrays import xarray_dataset

        return xarray_dataset(self, point, kind or self._kind_of(point))

    def _kind_of(self, point: str) -> RowKind:
        info = self.points.get(point)
        return "pooled" if info is not None and info.rows == "pooled" else "tokens"

    def _chunked(self, array: StoredArray, ranges: Ranges) -> ChunkedArray:
        return ChunkedArray(self.path, array, self.commits(array), ranges, self.samples)

    def writer(self, first_sample: int = 0, last_sample: int | None = None, *, depth: int = 4) -> Writer:
        """Return a writer of samples `first_sample` to `last_sample` (exclusive, default: to the end).

        At most `depth` full chunks wait for the disk at a time, in as many threads; one more looks at large
        rows while `put` writes them. Its memory is at most one chunk for each array and those; rows of a
        megabyte and more in the dtype of their point need none. Several processes may write disjoint ranges
        at once; see `parts`.

        Raises:
            StoreBusyError: a live writer owns some of the samples.
            StoreError: the store is open for reading only, or cannot be written.
            ValueError: an empty range or one outside the store, or depth below 1.
        """
        n_samples = self._header.n_samples
        last = n_samples if last_sample is None else last_sample
        if not 0 <= first_sample < last <= n_samples:
            raise ValueError(f"sample range {first_sample}:{last} is empty or outside 0:{n_samples}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        if self.mode != "r+":
            raise StoreError(f"{self.path} is open for reading only: open it with mode='r+'")
        arrays = [(array, self.commits(array), self.bounds(array)) for array in self._arrays]
        return Writer(self.path, self._header, self.samples, arrays, first_sample, last, depth)

    def parts(self, count: int) -> list[tuple[int, int]]:
        """Return at most `count` disjoint sample ranges of about equal bytes, for as many writers.

        Where the pooled rows have chunks enough, the ranges start on the nearest of their boundaries, so that only
        few samples are needed by two writers.

        Raises:
            ValueError: count below 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        n_samples = self._header.n_samples
        size = np.zeros(n_samples + 1)
        for array in self._arrays:
            size += self.bounds(array) * array.spec.row_bytes
        step = max(info.pooled_chunk_rows for info in self.points.values())
        if step == 0 or step * count > n_samples:
            step = 1
        cuts = np.searchsorted(size, size[-1] * np.arange(1, count) / count)
        edges = {0, n_samples}
        for cut in cuts.tolist():
            nearest = (cut + step // 2) // step * step
            edges.add(nearest if nearest < n_samples else cut // step * step)
        return list(pairwise(sorted(edges)))

    def content_hash(self) -> str:
        """Return the SHA-256 of the plan hash and every commit record: equal for equal stores.

        It stands for all stored bytes, since each record holds its chunk's checksum.

        Raises:
            DamagedChunkError: a commit record cannot be read.
        """
        lines = [self.plan_hash]
        for array in self._arrays:
            log = self.commits(array)
            for chunk in np.flatnonzero(log.committed).tolist():
                record = log.record(chunk)
                lines.append(f"{array.spec.path} {chunk} {record.rows} {record.crc32c} {record.exponent}")
        return sha256("\n".join(lines).encode())

    def __repr__(self) -> str:
        """Return path, points and progress."""
        done = f"{self.n_complete} of {self._header.n_samples} samples"
        return f"ActivationStore({str(self.path)!r}, {done}, points: {', '.join(self.points)})"


def as_store(store: ActivationStore | str | os.PathLike[str]) -> ActivationStore:
    """Return a store that is open already as it is, and open one for reading where a path or URL is given.

    Raises:
        StoreError: as `ActivationStore.open`.
    """
    return store if isinstance(store, ActivationStore) else ActivationStore.open(store)


def _comparable(header: Header) -> dict[str, Any]:
    stable = {key: value for key, value in header.provenance.items() if key not in VOLATILE}
    both: dict[str, Any] = json.loads(canonical_json({"plan": header.plan, "provenance": stable}))
    return {**both["plan"], "provenance": both["provenance"]}
