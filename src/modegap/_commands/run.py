"""`modegap run FILE.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .clustering import ClusterOptions, workers
from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.experiment import ExperimentResult


@dataclass(frozen=True, slots=True)
class Config:
    """Which experiment.

    Attributes:
        file: YAML file, or lab, paper, template (those that come with modegap).
        out: folder for stores, results and report, instead of the file's.
        device: where reductions compute, for example `cuda`; the host unless given.
        dry_run: list what is done and what would be.
        show: print the file and do nothing else: `modegap run template --show > my.yaml`.
    """

    file: str
    out: str | None = None
    device: str | None = None
    dry_run: bool = False
    show: bool = False


CONFIGS = (Config, ClusterOptions)


def run(config: Config, options: ClusterOptions, console: Console) -> ExperimentResult | Output:
    """Compute what is not done yet, and write the report."""
    from modegap._facade import load, unsifted_dataset
    from modegap.analyses.experiment import load_experiment, shipped
    from modegap.analyses.experiment import run as run_experiment

    if config.show:
        known = shipped()
        if config.file not in known:
            raise ValueError(
                f"show: no experiment {config.file!r} comes with modegap; there are {', '.join(known)}"
            )
        text = known[config.file].read_text()
        if not console.quiet:
            print(text, end="")
        return Output([], {"yaml": text})
    experiment = load_experiment(config.file, **({"out": config.out} if config.out else {}))
    with (
        workers(options, f"{experiment.out}/cluster", console) as cluster,
        console.progress("run", unit="steps") as advance,
    ):
        return run_experiment(
            experiment,
            load=load,
            open_data=unsifted_dataset,
            step=lambda what, done, total: advance(done, total, label=what),
            device=config.device,
            dry_run=config.dry_run,
            cluster=cluster,
        )
