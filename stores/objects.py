"""Committing to an object store: objects appear whole, so there is nothing to stage, rename or sync."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Protocol

from .chunkfiles import Encoded
from .commits import CommitLog, CommitRecord
from .draft import Draft
from .errors import StoreBusyError
from .publishing import Publisher
from .remote import Place, RemotePath, local
from .zarrjson import ArraySpec

Staged = Path | None
KEPT_OPEN = 64
"""Files of chunks that a writer keeps open at most."""


class Publishing(Protocol):
    """What puts a chunk, and then its commit record, where they belong."""

    def draft(self, spec: ArraySpec, chunk: int, file: Place) -> Draft | None:
        """Return what writes a chunk while it fills, where that can be done."""

    def stage_chunk(self, file: Place, encoded: Encoded, written: int, draft: Draft | None) -> Staged:
        """Store a chunk's content; return what `publish` needs of it."""

    def publish(self, chunk: int, file: Place, staged: Staged, log: CommitLog, record: CommitRecord) -> None:
        """Return once the chunk and its commit record are in place."""


class LocalPublisher:
    """Temporary files, renames and shared syncs: see `Publisher`."""

    def __init__(self) -> None:
        """Start with nothing waiting."""
        self._publisher = Publisher()
        self._kept = threading.BoundedSemaphore(KEPT_OPEN)

    def draft(self, spec: ArraySpec, chunk: int, file: Place) -> Draft | None:
        """Return the temporary file of a chunk."""
        return Draft(spec, chunk, local(file), self._kept)

    def stage_chunk(self, file: Place, encoded: Encoded, written: int, draft: Draft | None) -> Staged:
        """Complete and sync the temporary file.

        Raises:
            OSError: the disk is full, read-only or broken.
        """
        assert draft is not None
        return draft.finish(encoded.parts(written))

    def publish(self, chunk: int, file: Place, staged: Staged, log: CommitLog, record: CommitRecord) -> None:
        """Return once the chunk and its commit record are in place and on the disk.

        Raises:
            StoreBusyError: another writer has committed the chunk.
            OSError: the disk is full, read-only or broken.
        """
        assert staged is not None
        self._publisher.publish(chunk, local(file), staged, log, record)


class ObjectPublisher:
    """Exclusively created objects: the chunk, then its record.

    A chunk that is there and not committed was left by a writer that is gone; the next one removes it before
    it begins, when its claim keeps all others out.
    """

    def draft(self, spec: ArraySpec, chunk: int, file: Place) -> None:
        """Return nothing: an object is created whole."""
        return

    def stage_chunk(self, file: Place, encoded: Encoded, written: int, draft: Draft | None) -> Staged:
        """Create the object of a chunk.

        Raises:
            StoreBusyError: another writer has made it meanwhile.
            OSError: the server does not answer.
        """
        assert isinstance(file, RemotePath)
        try:
            file.create(b"".join(encoded))
        except FileExistsError:
            raise StoreBusyError(f"{file} has just been written by another writer: resume to go on") from None
        return None

    def publish(self, chunk: int, file: Place, staged: Staged, log: CommitLog, record: CommitRecord) -> None:
        """Create the commit record.

        Raises:
            StoreBusyError: another writer has committed the chunk.
            OSError: the server does not answer.
        """
        log.publish(chunk, record)


def publisher_for(root: Place) -> Publishing:
    """Return what commits chunks of the store at `root`."""
    return ObjectPublisher() if isinstance(root, RemotePath) else LocalPublisher()
