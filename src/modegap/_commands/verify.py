"""`modegap verify STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.table import Table
from modegap.stores import ActivationStore
from modegap.stores import verify as check

from .output import Output, size

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to check.

    Attributes:
        store: folder of the store.
        fraction: share of each array's chunks to read, evenly spread.
        threads: chunks read at once; two unless given, eight behind a URL.
    """

    store: str
    fraction: float = 1.0
    threads: int | None = None


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Read the chunks and compare them with their checksums; exit code 1 if any is damaged."""
    store = ActivationStore.open(config.store)
    with console.progress("verify", unit="B") as advance:
        report = check(store, fraction=config.fraction, threads=config.threads, progress=advance)
    rows = [
        (d.point, d.kind, None, None, d.reason)
        if d.kind == "metadata"
        else (d.point, d.kind, d.chunk, f"{d.rows[0]}-{d.rows[1] - 1}", d.reason)
        for d in report.damaged
    ]
    notes = [
        f"{report.chunks_checked} of {report.chunks_committed} committed chunks read, {size(report.bytes)}"
    ]
    if report.damaged:
        notes.append(
            f"run `modegap repair {config.store}`, then the extraction again: it rewrites only these"
        )
    title = f"{config.store}: {'no damage' if report.ok else f'{len(report.damaged)} damaged'}"
    table = Table(title, ["point", "kind", "chunk", "rows", "reason"], rows, notes)
    return Output([table], report.to_json(), exit_code=0 if report.ok else 1)
