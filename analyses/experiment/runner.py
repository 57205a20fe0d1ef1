"""`run`: an experiment, cell by cell, each only where it is not done already."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.analyses.report import Gallery, Item, Section, Tile, write_report
from modegap.analyses.study import Study, load_study, study_report
from modegap.analyses.table import Table
from modegap.engine.cluster import joined
from modegap.engine.errors import EngineError

from .cells import Cell, cells_of, describe, shares_pass, study_folder, version_of
from .config import Experiment, load_experiment
from .ledger import Entry, Ledger, fingerprint, key_of, locked
from .outcome import CellOutcome, ExperimentResult
from .steps import Load, OpenData, Partner, Step, Steps

if TYPE_CHECKING:
    from modegap.engine.cluster import Cluster

_SHOWN = 12


def run(
    experiment: Experiment | str | Path,
    *,
    load: Load,
    open_data: OpenData,
    step: Step | None = None,
    device: str | None = None,
    dry_run: bool = False,
    cluster: str | Cluster | None = None,
    strict: bool = False,
    report: bool = True,
) -> ExperimentResult:
    """Compute what an experiment lists and is not done yet, and write its report.

    A cell is skipped where the ledger has it done with the same options on the same inputs (by content hash) and its
    file is as it was left. One that fails is recorded with its reason, those that read it as blocked, and the
    rest goes on; the same call later takes up what is missing. Captures go on at the exact sample.

    Args:
        experiment: the experiment, its YAML file, or the name of a shipped one.
        load: id and options to a model, as `modegap.load`.
        open_data: data set and options to a data set, as `modegap.dataset`.
        step: called as `step(what, done, total)` while something runs.
        device: where reductions compute; None is the host.
        dry_run: say what would be done, and do nothing.
        cluster: workers that share the passes over stores, the replays and the probes; captures run here. A replay's
            workers load the model themselves, by `load`, which they must be able to import.
        strict: raise the first error instead of going on.
        report: write the report.

    Raises:
        ValueError: the file, with the place in it.
        EngineError: another run is at work in the folder.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    cells = cells_of(experiment)
    out = Path(experiment.out)
    if dry_run:
        return ExperimentResult(experiment.name, _planned(cells, Ledger(out), experiment), None)
    say = step or (lambda what, done, total: None)
    with locked(out), joined(cluster, out / ".cluster") as workers:
        ledger = Ledger(out)
        steps = Steps(experiment, load, open_data, say, device, workers)
        outcomes: dict[str, CellOutcome] = {}
        for cell in cells:
            steps.partner = _partner(cell, cells, outcomes, ledger, experiment)
            outcomes[cell.name] = _one(cell, outcomes, ledger, steps, experiment, strict)
        steps.release()
        page = None
        if report:
            say("report", 0, 1)
            studies = studies_of(experiment, cells)
            if studies:
                page = _report(experiment, studies, list(outcomes.values()), open_data)
        if workers is not cluster:
            shutil.rmtree(out / ".cluster", ignore_errors=True)
        return ExperimentResult(experiment.name, tuple(outcomes.values()), page)


def _one(
    cell: Cell,
    outcomes: Mapping[str, CellOutcome],
    ledger: Ledger,
    steps: Steps,
    experiment: Experiment,
    strict: bool,
) -> CellOutcome:
    lacking = [name for name in cell.reads.values() if outcomes[name].outcome in ("failed", "blocked")]
    if lacking:
        message = f"{lacking[0]} is not there"
        ledger.add(Entry(cell.name, "", "blocked", message=message))
        return CellOutcome(cell.name, "blocked", 0.0, message, cell.file)
    key = _key(cell, ledger, experiment)
    if ledger.holds(cell.name, key):
        return CellOutcome(cell.name, "skipped", 0.0, "", cell.file)
    begin = time.perf_counter()
    made = {other: outcomes[name].file for other, name in cell.reads.items()}
    try:
        steps.run(cell, {role: Path(experiment.out) / file for role, file in made.items()})
    except Exception as error:
        # whatever goes wrong in one cell, the others still count; a defect leaves its traceback in the ledger
        if strict:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        expected = isinstance(error, EngineError | ValueError | OSError | _store_error())
        trace = "" if expected else traceback.format_exc()
        seconds = time.perf_counter() - begin
        ledger.add(Entry(cell.name, key, "failed", seconds, message=message, traceback=trace))
        return CellOutcome(cell.name, "failed", seconds, message, cell.file)
    seconds = time.perf_counter() - begin
    print_ = fingerprint(Path(experiment.out) / cell.file)
    if print_ is None:
        message = "its file is not complete"
        ledger.add(Entry(cell.name, key, "failed", seconds, message=message))
        return CellOutcome(cell.name, "failed", seconds, message, cell.file)
    said = steps.said.pop(cell.name, "")
    ledger.add(Entry(cell.name, key, "done", seconds, {cell.file: print_}, said))
    return CellOutcome(cell.name, "done", seconds, said, cell.file)


def _partner(
    cell: Cell,
    cells: list[Cell],
    outcomes: Mapping[str, CellOutcome],
    ledger: Ledger,
    experiment: Experiment,
) -> Partner | None:
    """The cell that the same pass of gradients serves, with its inputs, where it is not done and can be."""
    for other in cells:
        if not shares_pass(cell, other):
            continue
        ready = all(
            name in outcomes and outcomes[name].outcome in ("done", "skipped")
            for name in other.reads.values()
        )
        if ready and not ledger.holds(other.name, _key(other, ledger, experiment)):
            out = Path(experiment.out)
            return Partner(other, {role: out / outcomes[name].file for role, name in other.reads.items()})
    return None


def _key(cell: Cell, ledger: Ledger, experiment: Experiment) -> str:
    """Hash of the cell's options, the content it reads, and what the model and the data set are."""
    reads: list[str | None] = []
    for name in cell.reads.values():
        entry = ledger.last.get(name)
        reads += sorted(entry.files.values()) if entry else [None]
    options = {"options": describe(cell.config), "version": version_of(cell.kind)}
    if cell.needs_model:
        spec = experiment.models[cell.model]
        options["model"] = [spec.model, spec.revision, spec.dtype]
        from modegap.engine.models.weights import weights_digest

        if (weights := weights_digest(spec.model)) is not None:
            options["weights"] = weights
    if cell.kind in ("capture", "captions"):
        options["data"] = dict(experiment.datasets[cell.dataset].options)
    return key_of(cell.kind, options, reads)


def _planned(cells: list[Cell], ledger: Ledger, experiment: Experiment) -> tuple[CellOutcome, ...]:
    found: dict[str, CellOutcome] = {}
    for cell in cells:
        fresh = any(found[name].outcome == "to do" for name in cell.reads.values())
        done = not fresh and ledger.holds(cell.name, _key(cell, ledger, experiment))
        found[cell.name] = CellOutcome(cell.name, "done" if done else "to do", 0.0, "", cell.file)
    return tuple(found.values())


def studies_of(experiment: Experiment, cells: list[Cell]) -> list[Study]:
    """The studies whose folders hold results, named by model (and data set, where there are several)."""
    found = []
    for folder in dict.fromkeys(cell.folder for cell in cells if cell.kind != "capture"):
        cell = next(c for c in cells if c.folder == folder and c.kind != "capture")
        try:
            study = load_study(Path(experiment.out) / folder)
        except ValueError:  # nothing there: its cells failed, and the report lists them
            continue
        several = len(experiment.datasets) > 1
        found.append(replace(study, name=f"{cell.model} on {cell.dataset}" if several else cell.model))
    return found


def _report(
    experiment: Experiment,
    studies: list[Study],
    outcomes: list[CellOutcome],
    open_data: OpenData,
) -> Path:
    shown = [_with_examples(study, experiment, open_data) for study in studies]
    made = study_report(
        shown, title=experiment.title, about=experiment.about, provenance=_lab_facts(experiment)
    )
    holes = [outcome for outcome in outcomes if outcome.outcome in ("failed", "blocked")]
    if holes:
        table = Table(
            "What is missing", ("cell", "outcome", "why"), [(h.cell, h.outcome, h.message) for h in holes]
        )
        prose = "These could not be computed; run the experiment again once the reason is gone."
        section = Section("What is missing", "missing", prose, [Item(table, name="missing")])
        made = replace(made, sections=[*made.sections, section])
    return write_report(made, Path(experiment.out) / "report")


def _lab_facts(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """How the built-in models were trained, where the experiment uses them."""
    if not any(spec.model.partition(":")[0] == "lab" for spec in experiment.models.values()):
        return {}
    from modegap.analyses import lab

    facts = lab.facts()
    return {
        "lab": {key: facts[key] for key in ("seed", "content_hash", "versions", "seconds") if key in facts}
    }


def _with_examples(study: Study, experiment: Experiment, open_data: OpenData) -> Study:
    """The study with its captions as a gallery and a fact, where they were made."""
    for data, source in experiment.datasets.items():
        for model in experiment.studied():
            several = len(experiment.datasets) > 1
            if study.name != (f"{model} on {data}" if several else model):
                continue
            path = Path(experiment.out) / study_folder(experiment, data, model) / "captions.jsonl"
            if not path.is_file():
                return study
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            samples = open_data(source.dataset, **{**source.options, "limit": min(_SHOWN, len(rows))})
            tiles = [
                Tile(sample.media, sample.text, row["caption"], correct=row["correct"])
                for sample, row in zip(samples, rows, strict=False)
            ]
            share = sum(row["correct"] for row in rows) / len(rows)
            said = f"{100 * share:.1f} % of {len(rows)} held-out images are captioned with the right digit."
            facts = {**study.facts, "caption_accuracy": share, "captions": float(len(rows))}
            return replace(study, gallery=Gallery(f"{study.name}: held-out images", tiles, said), facts=facts)
    return study


def examples(studies: list[Study], experiment: Experiment, open_data: OpenData) -> list[Study]:
    """The studies with the captions that the experiment made of them."""
    return [_with_examples(study, experiment, open_data) for study in studies]


def _store_error() -> type[Exception]:
    from modegap.stores import StoreError

    return StoreError
