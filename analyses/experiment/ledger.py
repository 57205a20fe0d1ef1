"""The ledger: what a run did, one JSON object a line, appended and never rewritten."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError

NAME = "ledger.jsonl"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class Entry:
    """One outcome of one cell.

    Attributes:
        cell: its name.
        key: hash of its options and of everything that it reads.
        outcome: `done`, `failed` or `blocked`.
        seconds: what it took.
        files: file it wrote, relative to the folder, to its SHA-256; a store to the hash of its plan.
        message: why it failed, what blocked it, or a remark.
        traceback: of a defect.
        time: seconds since 1970.
    """

    cell: str
    key: str
    outcome: str
    seconds: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    traceback: str = ""
    time: float = 0.0


class Ledger:
    """The entries of a folder; the last one of a cell counts."""

    def __init__(self, folder: Path) -> None:
        """Reads what is there; a line that a crash cut off is passed over."""
        self.folder, self.path = folder, folder / NAME
        self.last: dict[str, Entry] = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self.last[entry.cell] = entry

    def add(self, entry: Entry) -> None:
        """Append an entry, on disk before this returns."""
        entry = Entry(**{**asdict(entry), "time": time.time()})
        # a line that a crash cut off must not swallow this one
        with self.path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            cut = file.read(1) not in (b"", b"\n")
            file.write((b"\n" if cut else b"") + json.dumps(asdict(entry), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.last[entry.cell] = entry

    def holds(self, cell: str, key: str) -> bool:
        """Whether a cell is done with this key and its files are as it left them."""
        entry = self.last.get(cell)
        if entry is None or entry.outcome != "done" or entry.key != key:
            return False
        return all(fingerprint(self.folder / name) == value for name, value in entry.files.items())


def fingerprint(path: Path) -> str | None:
    """SHA-256 of a file, or of a finished store's content; None where there is nothing or an unfinished store."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    from modegap.stores import ActivationStore, StoreError

    try:
        store = ActivationStore.open(path)
        return str(store.content_hash()) if bool(store.complete_samples().all()) else None
    except StoreError:
        return None


def key_of(kind: str, options: Any, reads: Sequence[str | None]) -> str:
    """Hash of what a cell does and reads."""
    from modegap.analyses.result import jsonable

    text = json.dumps([kind, jsonable(options), list(reads)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; ends with the process, however it ends.

    Raises:
        EngineError: another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EngineError(
                f"another run is at work in {folder}; wait for it, or choose another out"
            ) from error
        yield
