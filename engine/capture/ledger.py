"""The ledger of batches that ran out of memory and were captured in smaller parts."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Ledger:
    """Writes `<store>/_capture/retries.jsonl`; the folder exists only once there is something to tell."""

    def __init__(self, store: Path) -> None:
        """Writes nothing before `attach`: the store does not exist yet."""
        self._file = _file(store)
        self._attached = False
        self._pending: list[str] = []

    def retried(self, ids: Sequence[str], size: int) -> None:
        """Notes that the samples `ids` did not fit together and are captured `size` at a time."""
        log.warning("out of memory: capturing %s to %s again, %d samples at a time", ids[0], ids[-1], size)
        self._pending.append(json.dumps({"samples": list(ids), "next_batch_size": size}))
        if self._attached:
            self._write()

    def attach(self) -> None:
        """Says that the store exists: what was noted before is written now."""
        self._attached = True
        self._write()

    def _write(self) -> None:
        if not self._pending:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{line}\n" for line in self._pending)
        self._pending.clear()


def read_retries(store: str | Path) -> list[dict[str, object]]:
    """Batches of a store that were tried again: `samples` (ids) and `next_batch_size` of each, in order."""
    file = _file(Path(store))
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )


def _file(store: Path) -> Path:
    return store / "_capture" / "retries.jsonl"
