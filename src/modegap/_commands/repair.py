"""`modegap repair STORE`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.table import Table
from modegap.stores import ActivationStore, Damage, restore_header
from modegap.stores import repair as mend

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to repair.

    Attributes:
        store: folder of the store.
        rebuild: also make commit records for sound chunks that have none, say after `_commit` was lost.
        threads: chunks read at once; two unless given, eight behind a URL.
    """

    store: str
    rebuild: bool = False
    threads: int | None = None


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Restore what follows from the rest of the store; withdraw damaged chunks, so that they are made again."""
    header = restore_header(config.store)
    store = ActivationStore.open(config.store, mode="r+")
    with console.progress("verify", unit="B") as advance:
        report = mend(store, rebuild=config.rebuild, progress=advance, threads=config.threads)
    done = f"{len(report.restored) + header} restored, {len(report.withdrawn)} withdrawn"
    nothing = not (header or report.restored or report.withdrawn)
    rows: list[tuple[Any, ...]] = [("", "metadata", None, None, "zarr.json", "restored")] if header else []
    rows += [_row(d, "restored") for d in report.restored] + [_row(d, "withdrawn") for d in report.withdrawn]
    notes = [f"{store.n_complete} of {len(store.samples)} samples are complete"]
    if report.withdrawn:
        notes.append("run the extraction again with the same settings: it rewrites what was withdrawn")
    table = Table(
        f"{config.store}: {'no damage' if nothing else done}",
        ["point", "kind", "chunk", "rows", "reason", "outcome"],
        rows,
        notes,
    )
    data = {
        "header_restored": header,
        "restored": [asdict(d) for d in report.restored],
        "withdrawn": [asdict(d) for d in report.withdrawn],
        "complete_samples": store.n_complete,
    }
    return Output([table], data)


def _row(damage: Damage, outcome: str) -> tuple[Any, ...]:
    chunk = None if damage.kind == "metadata" else damage.chunk
    rows = None if damage.kind == "metadata" else f"{damage.rows[0]}-{damage.rows[1] - 1}"
    return damage.point, damage.kind, chunk, rows, damage.reason, outcome
