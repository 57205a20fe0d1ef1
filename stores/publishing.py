"""Committing chunks in groups: those that wait at the same time share the syncs of their folders."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from .commits import CommitLog, CommitRecord
from .durable import sync_folder
from .remote import local


@dataclass(slots=True)
class _Waiting:
    """A chunk under its final name and a synced record under a temporary one."""

    chunk: int
    file: Path
    log: CommitLog
    record: CommitRecord
    staged: Path
    done: bool = False
    error: BaseException | None = None

    @property
    def folder_is_its_own(self) -> bool:
        """Whether the chunk is alone in its folder, whose name has to reach the disk too."""
        return len(self.log.spec.shape) > 1


class Publisher:
    """Makes chunks visible in the order that a power cut cannot undo; safe to use from several threads.

    For each chunk: its data reach the disk, then its name, then its commit record. Whichever thread comes
    first does the last two steps for all that wait meanwhile, with one sync for each folder they share.
    """

    def __init__(self) -> None:
        """Start with nothing waiting."""
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting] = deque()

    def publish(self, chunk: int, file: Path, new: Path, log: CommitLog, record: CommitRecord) -> None:
        """Return once a chunk, synced under the name `new`, and its commit record are in place and on the disk.

        Raises:
            StoreBusyError: another writer has committed the chunk.
            OSError: the disk is full, read-only or broken; nothing is committed, no temporary file stays.
        """
        try:
            mine = _Waiting(chunk, file, log, record, log.stage(chunk, record))
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        try:
            new.replace(file)
        except BaseException:
            new.unlink(missing_ok=True)
            mine.staged.unlink(missing_ok=True)
            raise
        self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                _publish([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error


def _publish(group: list[_Waiting]) -> None:
    """Sync the names of the group's chunks, then link and sync their records; errors stay with the chunks."""
    try:
        for folder in dict.fromkeys(item.file.parent for item in group):
            sync_folder(folder)
        for folder in dict.fromkeys(item.file.parent.parent for item in group if item.folder_is_its_own):
            sync_folder(folder)
        for item in group:
            try:
                item.log.publish(item.chunk, item.record, item.staged)
            except Exception as error:
                item.error = error
        for folder in dict.fromkeys(local(item.log.folder) for item in group):
            sync_folder(folder)
    except BaseException as error:
        for item in group:
            item.error = item.error or error
        for item in group:
            with contextlib.suppress(OSError):
                item.staged.unlink(missing_ok=True)
    finally:
        for item in group:
            item.done = True
