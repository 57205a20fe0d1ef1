"""Writing samples into a store: checked, in order, committed chunk by chunk, resumable at any moment."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from . import filling
from .chunkwriter import ChunkWriter
from .commits import CommitLog
from .committer import Committer
from .errors import StoreError, disk_error, unknown_name
from .layout import Header, StoredArray
from .leftovers import remove_leftovers, without_files
from .objects import publisher_for
from .owner import claim, release
from .remote import Place
from .runs import Run, Survey
from .summing import default_threads
from .values import AS_FLOAT32, FEWEST_BITS, absmax, check_top, checked_column, shaped_rows

_WORTH_SHARING = 2**21
"""Bytes of rows from which on another thread is called to look at them: it takes 0.1 ms to come."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleRows:
    """The rows of one sample at one point: `tokens` [t, d] and/or `pooled` [d], of any float dtype."""

    tokens: np.ndarray | None = None
    pooled: np.ndarray | None = None


_NOTHING = SampleRows()


@dataclass(slots=True, eq=False)
class _Part:
    """A sample's rows in one array on their way there; those in `begun` are written before they are checked."""

    writer: ChunkWriter
    where: str
    rows: np.ndarray
    top: float | None = None
    begun: tuple[slice, Run] | None = None

    def check(self) -> None:
        """Find the largest absolute value, if it is not known.

        Raises:
            StoreError: NaN, infinity, or beyond what the array can hold.
        """
        if self.top is None:
            self.top = absmax(self.rows) if self.begun is None else self._largest(*self.begun)
            check_top(self.where, self.rows, self.top, self.writer.spec.dtype)

    def _largest(self, place: slice, run: Run) -> float:
        if len(run.rows) == len(self.rows):
            return run.top
        rest = (self.rows[: place.start], self.rows[place.stop :])
        return float(np.max([run.top, *map(absmax, rest)]))  # NaN if one of them is


Columns = tuple[np.ndarray | None, np.ndarray | None]


class Writer:
    """Writes samples `first` to `last` of a store; use it as a context manager.

    A chunk belongs to the writer whose samples hold its first row, so that any division of the samples gives
    the same files. The last chunks may reach into samples after `last`: `todo` and `stop` include those.

    Leaving the context waits for the chunks on their way. Chunks that are not full then are not stored; their
    samples are the first of the next writer's `todo`.

    Attributes:
        first, last: the samples owned.
        stop: the sample after the last one to put.
        withdrawn: (array path, chunk) of committed chunks that were found missing or cut short, to be
        rewritten.
    """

    def __init__(
        self,
        root: Place,
        header: Header,
        ids: Sequence[str],
        arrays: Sequence[tuple[StoredArray, CommitLog, np.ndarray]],
        first: int,
        last: int,
        depth: int,
    ) -> None:
        """Use `ActivationStore.writer` instead; `arrays` pairs each array with its log and row bounds."""
        self.first, self.last = first, last
        self._root, self._ids = root, ids
        self._points, self._streams = header.points(), header.plan["streams"]
        try:
            record = claim(root, first, last)
        except OSError as error:
            raise disk_error(error, root, 4096) from error
        self._release = weakref.finalize(self, release, root, record, os.getpid())
        self._committer = Committer(depth, publisher_for(root))
        self._closed = self._torn = False
        self.withdrawn: list[tuple[str, int]] = []
        try:
            self._writers = {
                (array.kind, array.owner): ChunkWriter(
                    root, array, log, self._wanted(array, log, bounds), bounds, self._committer
                )
                for array, log, bounds in arrays
            }
        except BaseException:
            self._release()
            raise
        needed = np.zeros(header.n_samples, dtype=bool)
        for writer in self._writers.values():
            needed |= writer.samples_wanted()
        self._todo = np.flatnonzero(needed)
        self._done = 0
        self.stop = int(self._todo[-1]) + 1 if len(self._todo) else last

    def _wanted(self, array: StoredArray, log: CommitLog, bounds: np.ndarray) -> np.ndarray:
        """Return bool [chunks]: those to write; remove what a killed writer left of them."""
        log.refresh()
        spec = array.spec
        starts = np.arange(spec.n_chunks) * spec.chunk_rows
        owned: np.ndarray = (starts >= bounds[self.first]) & (starts < bounds[self.last])
        for chunk in without_files(self._root, log, owned):
            log.withdraw(chunk)
            self.withdrawn.append((spec.path, chunk))
        wanted: np.ndarray = owned & ~log.committed
        remove_leftovers(self._root, log, owned, wanted)
        return wanted

    @property
    def todo(self) -> np.ndarray:
        """Int64 indices of the samples still to put, in order."""
        return self._todo[self._done :]

    @property
    def resume_from(self) -> int:
        """The first sample still to put; `stop` if there is none."""
        return int(self._todo[self._done]) if self._done < len(self._todo) else self.stop

    def put(
        self, sample: int, rows: Mapping[str, SampleRows], tokens: Mapping[str, Columns] | None = None
    ) -> bool:
        """Store one sample and return True, or return False if it needs no storing (it is durable already).

        `rows` has every point of the plan; `tokens` maps a stream to its (ids, modality), int32 and uint8 [t]
        each (0 none, 1 text, 2 image, 3 audio); what is left out is stored as id -1, modality 0. Everything
        is checked before anything is kept: after a ValueError or a StoreError about the sample's values, the
        same sample can be put again.

        Raises:
            ValueError: unknown or missing point or stream, wrong shape or dtype, or a sample out of order.
            StoreError: NaN or infinity (the message names sample and point), or the disk failed for an
                earlier chunk.
        """
        if self._closed:
            raise StoreError("this writer is closed: open another with store.writer()")
        if self._torn:
            raise StoreError("an earlier put was interrupted: close this writer and open another to resume")
        self._committer.check()
        if not 0 <= sample < len(self._ids):
            raise ValueError(f"sample index must be 0 to {len(self._ids) - 1}, got {sample}")
        at = self._done  # where it is, unless the caller goes astray
        if at == len(self._todo) or self._todo[at] != sample:
            at = int(np.searchsorted(self._todo, sample))
        if at == len(self._todo) or self._todo[at] != sample:
            return False
        if at != self._done:
            problem = "was put already" if at < self._done else "came too early"
            raise ValueError(
                f"sample {sample} ({self._ids[sample]!r}) {problem}: expected {self.resume_from}"
            )
        ready = self._checked(sample, rows, tokens or {})
        self._torn = True
        for part in ready:
            part.writer.append(sample, part.rows, part.top, part.begun and part.begun[1])
        self._torn = False
        self._done += 1
        return True

    def _checked(
        self, sample: int, rows: Mapping[str, SampleRows], tokens: Mapping[str, Columns]
    ) -> list[_Part]:
        for what, known, names in (("point", self._points, rows), ("stream", self._streams, tokens)):
            for name in names:
                if name not in known:
                    raise ValueError(unknown_name(what, name, known))
        for name, given in rows.items():
            planned = self._points[name].rows
            if (given.tokens is not None and planned == "pooled") or (
                given.pooled is not None and planned == "tokens"
            ):
                raise ValueError(f"point {name!r} is planned with rows={planned!r}: leave the other rows out")
        parts: list[_Part] = []
        for (kind, owner), writer in self._writers.items():
            where = f"sample {sample} ({self._ids[sample]!r}), {kind} of {owner!r}"
            n_rows = int(writer.bounds[sample + 1] - writer.bounds[sample])
            if kind in ("tokens", "pooled"):
                both = rows.get(owner, _NOTHING)
                value = both.tokens if kind == "tokens" else both.pooled
                shape = (n_rows, writer.spec.shape[1])
                parts.append(_Part(writer, where, shaped_rows(where, value, shape, pooled=kind == "pooled")))
            else:
                pair = tokens.get(owner, (None, None))
                values, top = checked_column(where, kind, pair[kind == "modality"], n_rows)
                parts.append(_Part(writer, where, values, top))
        self._written(sample, parts)
        for part in parts:
            part.check()
            self._check_scale(sample, part)
        return parts

    def _check_scale(self, sample: int, part: _Part) -> None:
        """Return if nothing in the sample's chunks would be rounded away for the sake of one large value.

        Raises:
            StoreError: it would.
        """
        found = part.writer.conflict(sample, part.rows, part.top or 0.0)
        if found is not None:
            first, last = (self._ids[index] for index in (found.samples[0], found.samples[1] - 1))
            raise StoreError(
                f"{part.where}: the value {found.top:.3g} in sample {self._ids[found.sample]!r} needs a scale that "
                f"leaves other rows of its float16 chunk (samples {first!r} to {last!r}, one of them at most "
                f"{found.least:.3g}) fewer than {FEWEST_BITS} bits; nothing of this sample was stored: find out "
                f"where that value comes from and leave its sample out of the plan, or {AS_FLOAT32}"
            )

    def _written(self, sample: int, parts: Sequence[_Part]) -> None:
        """Write large rows to where they will belong if all is well, and look at them meanwhile.

        That is what takes the time. Another thread looks: it has the smaller share, so that nobody waits for
        it, and what is left when the rows are written is done here.
        """
        large = [part for part in parts if part.rows.nbytes >= filling.DIRECT]
        for part in large:
            part.begun = part.writer.begin(sample, part.rows)
        runs = [(part.writer, part.begun[1]) for part in large if part.begun is not None]
        if not runs:
            return
        alone = sum(run.rows.nbytes for _, run in runs) < _WORTH_SHARING or default_threads() < 2
        survey = Survey(() if alone else [run for _, run in runs])
        with nullcontext() if alone else self._committer.assistant.beside(survey.work):
            for writer, run in runs:
                writer.write(run, look=alone)
            survey.work()

    def close(self) -> None:
        """Wait for the chunks on their way, then give the samples back to other writers.

        Raises:
            StoreError: one of them could not be written.
        """
        if self._closed:
            return
        self._closed = True
        self._committer.finish()
        for writer in self._writers.values():
            writer.discard()
        self._release()
        self._committer.check()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; a failure on the way out does not hide the error that led here."""
        try:
            self.close()
        except StoreError:
            if error is None:
                raise
