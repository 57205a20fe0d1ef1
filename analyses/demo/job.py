"""The demo, step by step: each through the same functions that a 7B model takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from modegap.analyses import lab
from modegap.analyses.experiment import (
    Experiment,
    cells_of,
    examples,
    load_experiment,
    run,
    studies_of,
)
from modegap.analyses.result import NotebookRepr, jsonable
from modegap.analyses.study import Study
from modegap.analyses.table import Column, Table
from modegap.engine.datasets import limited
from modegap.engine.models import LoadedModel, adopt

from .config import DemoConfig

Step = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult(NotebookRepr):
    """What the demo made: the studies of both variants, and where the report is."""

    report: Path
    studies: tuple[Study, ...]

    def to_json(self) -> dict[str, Any]:
        """The report's path and every result."""
        return {
            "report": str(self.report),
            "studies": {
                study.name: {
                    "facts": jsonable(dict(study.facts)),
                    "align": [modes.to_json() for modes in study.modes],
                    "probe": study.probes.to_json() if study.probes else None,
                    "ablate": study.ablation.to_json() if study.ablation else None,
                }
                for study in self.studies
            },
        }

    def table(self) -> Table:
        """One row a variant, with the numbers of the report's top."""
        rows = []
        for study in self.studies:
            modes, ablation = study.modes[0], study.ablation
            first = ablation.conditions[0].change if ablation else None
            rows.append(
                (
                    study.name,
                    100 * study.facts["caption_accuracy"],
                    f"{len(modes.ms)}/{len(modes.considered)}",
                    100 * modes.ms_variance,
                    float(modes.rho[modes.considered[0]]),
                    first.percent if first else None,
                )
            )
        columns = (
            "variant",
            Column("right digit in caption", "%", ".1f"),
            "modes with ρ < 0.5",
            Column("their variance", "% of considered", ".1f"),
            Column("ρ of the first mode", format=".3g"),
            Column("loss without them", "%", "+.2f"),
        )
        return Table("The lab, at the adapter's output", columns, rows, (f"report: {self.report}",))


def demo(config: DemoConfig | None = None, *, step: Step | None = None) -> DemoResult:
    """Run the shipped experiment `lab` on both lab variants and write the report.

    Args:
        config: options.
        step: called as `step(what, done, total)` while something long runs.

    Raises:
        StoreError: `out` holds stores that were made with other options; the message says which differ.
        OSError: `out` cannot be written.
    """
    config = config or DemoConfig()
    experiment = lab_experiment(config)
    result = run(
        experiment,
        load=_load,
        open_data=_open,
        step=step,
        strict=True,
    )
    assert result.report is not None  # strict: every study is there
    studies = examples(studies_of(experiment, cells_of(experiment)), experiment, _open)
    return DemoResult(result.report, tuple(studies))


def lab_experiment(config: DemoConfig) -> Experiment:
    """The shipped experiment `lab` with the demo's sizes."""
    shipped = load_experiment("lab", out=config.out)
    data = shipped.datasets["lab"]
    sizes = {"batch_size": config.batch_size}
    ablate = {**shipped.analyses["ablate"], **sizes, "n_samples": config.ablate_samples}
    return replace(
        shipped,
        datasets={"lab": replace(data, options={**data.options, "size": config.samples})},
        capture={**shipped.capture, **sizes},
        analyses={
            **shipped.analyses,
            "ablate": ablate,
            "captions": {"samples": config.ablate_samples},
        },
    )


def _load(name: str, **options: Any) -> LoadedModel:
    variant = name.partition(":")[2]
    parts: Any = lab.load_text() if variant == "text" else lab.load(cast("lab.Variant", variant))
    return adopt(*parts, name=name, revision=lab.revision())


def _open(spec: str, *, limit: int | None = None, keep_missing: bool = False, **options: Any) -> Any:
    return limited(lab.LabDataset(**options), limit)
