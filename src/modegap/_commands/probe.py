"""`modegap probe STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.probe.config import ProbeConfig

from .clustering import ClusterOptions, workers

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.probe import ProbeResult


@dataclass(frozen=True, slots=True)
class Source:
    """What is probed, and where the result goes.

    Attributes:
        store: folder of a store with pooled rows.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
    """

    store: str
    out: str | None = None


CONFIGS = (Source, ProbeConfig, ClusterOptions)


def run(source: Source, config: ProbeConfig, options: ClusterOptions, console: Console) -> ProbeResult:
    """Accuracy of linear probes of every label along the hook points."""
    from modegap.analyses.probe import probe
    from modegap.analyses.saved import save_result

    with workers(options, source.out, console) as cluster:
        with console.progress("probe", unit="cells") as advance:
            result = probe(source.store, config=config, progress=advance, cluster=cluster)
        if source.out is not None:
            save_result(result, source.out)
            console.say(f"probes: {source.out}")
    return result
