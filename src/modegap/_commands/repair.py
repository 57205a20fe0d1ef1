"""`modegap repair STORE`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from modegap.analyses.table import Table
from modegap.stores import ActivationStore
from modegap.stores import repair as withdraw

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What to repair.

    Attributes:
        store: folder of the store.
    """

    store: str


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Withdraw damaged chunks, so that running the extraction again rewrites them and nothing else."""
    store = ActivationStore.open(config.store, mode="r+")
    with console.progress("verify", unit="B") as advance:
        damaged = withdraw(store, progress=advance)
    rows = [(d.point, d.kind, d.chunk, f"{d.rows[0]}-{d.rows[1] - 1}", d.reason) for d in damaged]
    notes = [f"{store.n_complete} of {len(store.samples)} samples are complete"]
    if damaged:
        notes.append("run the extraction again with the same settings: it rewrites what was withdrawn")
    title = f"{config.store}: {len(damaged)} chunks withdrawn" if damaged else f"{config.store}: no damage"
    table = Table(title, ["point", "kind", "chunk", "rows", "reason"], rows, notes)
    return Output([table], {"withdrawn": [asdict(d) for d in damaged], "complete_samples": store.n_complete})
