"""`modegap report FOLDER...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.table import Table

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """What is reported, and where.

    Attributes:
        out: folder for the page, its figures and tables.
        studies: folders with the results of a model each, as the commands wrote them with --out.
        title: heading of the page.
    """

    out: str
    studies: Sequence[str]
    title: str = "Modality gap"


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Write the report and return its path."""
    from modegap.analyses.report import write_report
    from modegap.analyses.study import load_study, study_report

    studies = [load_study(folder) for folder in config.studies]
    page = write_report(study_report(studies, title=config.title), config.out)
    kinds = ["probes", "distances", "pertype", "ablation", "lipschitz", "gradproj", "swap", "gmi", "bound"]
    rows: list[tuple[Any, ...]] = [
        (study.name, len(study.modes), *(getattr(study, kind) is not None for kind in kinds), len(study.lora))
        for study in studies
    ]
    table = Table(f"report: {page}", ["study", "alignments", *kinds, "lora"], rows)
    return Output([table], {"report": str(page), "studies": [study.name for study in studies]})
