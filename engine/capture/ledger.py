"""The ledger: batches that ran out of memory and were captured in smaller parts, samples left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Ledger:
    """Writes `<store>/_capture/*.jsonl`; the folder exists only once there is something to tell."""

    def __init__(self, store: Path) -> None:
        """Writes nothing before `attach`: the store does not exist yet."""
        self._store = store
        self._attached = False
        self._pending: list[tuple[str, str]] = []

    def retried(self, ids: Sequence[str], size: int) -> None:
        """Notes that the samples `ids` did not fit together and are captured `size` at a time."""
        log.warning("out of memory: capturing %s to %s again, %d samples at a time", ids[0], ids[-1], size)
        self._note("retries", {"samples": list(ids), "next_batch_size": size})

    def skipped(self, bad: Mapping[str, str]) -> None:
        """Notes the samples that were left out, with the reason for each."""
        if bad and not read_skipped(self._store):
            log.warning("left out %d samples whose media cannot be decoded", len(bad))
            for sample, reason in bad.items():
                self._note("skipped", {"sample": sample, "reason": reason})

    def attach(self) -> None:
        """Says that the store exists: what was noted before is written now."""
        self._attached = True
        self._write()

    def forget(self) -> None:
        """Drops what was noted before the store exists: another process tells of it."""
        self._pending.clear()

    def _note(self, name: str, entry: dict[str, object]) -> None:
        self._pending.append((name, json.dumps(entry)))
        if self._attached:
            self._write()

    def _write(self) -> None:
        for name, line in self._pending:
            file = _file(self._store, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{line}\n")
        self._pending.clear()


def read_retries(store: str | Path) -> list[dict[str, object]]:
    """Batches of a store that were tried again: `samples` (ids) and `next_batch_size` of each, in order."""
    return _read(Path(store), "retries")


def read_skipped(store: str | Path) -> list[dict[str, object]]:
    """Samples that were left out: `sample` (id) and `reason` of each, in data set order."""
    return _read(Path(store), "skipped")


def _read(store: Path, name: str) -> list[dict[str, object]]:
    file = _file(store, name)
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )


def _file(store: Path, name: str) -> Path:
    return store / "_capture" / f"{name}.jsonl"
