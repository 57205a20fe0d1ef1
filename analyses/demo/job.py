"""The demo, step by step: each through the same functions that a 7B model takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modegap.analyses import lab
from modegap.analyses.ablate import ablate
from modegap.analyses.align import Modes, align
from modegap.analyses.lab.grammar import named_digits
from modegap.analyses.lab.scoring import generate_captions
from modegap.analyses.probe import probe
from modegap.analyses.report import Gallery, Tile, write_report
from modegap.analyses.result import jsonable
from modegap.analyses.saved import save_result
from modegap.analyses.study import Study, load_study, study_report
from modegap.analyses.study.model import FACTS
from modegap.analyses.table import Column, Table
from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.models import LoadedModel, adopt
from modegap.stores import ActivationStore

from .config import DemoConfig

# The middle of the lab decoder's six layers, as llm_hidden_16 is of an 8B decoder's 32.
HIDDEN = "llm_hidden_3"
FINAL = "llm_final"
MODAL_POINTS = ("encoder_output", "adapter_output", HIDDEN, FINAL)
TEXT_POINTS = ("text_embedding", HIDDEN, FINAL)
LABELS = ("digit", "color", "place", "size", "background")
_SHOWN = 12

Step = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class DemoResult:
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
    """Run the main job on both lab variants and write the report.

    Args:
        config: options.
        step: called as `step(what, done, total)` while something long runs.

    Raises:
        StoreError: `out` holds stores that were made with other options; the message says which differ.
        OSError: `out` cannot be written.
    """
    config = config or DemoConfig()
    say = step or (lambda what, done, total: None)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    data = lab.LabDataset("test", size=config.samples)
    decoder, tokenizer = lab.load_text()
    text = adopt(decoder, tokenizer, name="lab:text", revision=lab.revision())
    text_store = _capture(text, data, out / "text.zarr", TEXT_POINTS, config, say)
    studies = tuple(_study(variant, data, text_store, out / variant, config, say) for variant in lab.VARIANTS)
    say("report", 0, 1)
    report = study_report(
        studies,
        title="The modality gap in the lab",
        about=_ABOUT,
        provenance={"lab": _lab_facts(), "text store": text_store.provenance},
    )
    return DemoResult(write_report(report, out / "report"), studies)


def _capture(
    loaded: LoadedModel,
    data: lab.LabDataset,
    path: Path,
    points: tuple[str, ...],
    config: DemoConfig,
    say: Step,
) -> ActivationStore:
    wanted = ExtractConfig(
        model=loaded.name,
        dataset=data.name,
        store=str(path),
        points=points,
        batch_size=config.batch_size,
    )
    return extract(
        wanted,
        model=loaded,
        data=data,
        progress=lambda phase, done, total: say(f"{loaded.name}: {phase}", done, total),
    )


def _study(
    variant: lab.Variant,
    data: lab.LabDataset,
    text: ActivationStore,
    folder: Path,
    config: DemoConfig,
    say: Step,
) -> Study:
    """Capture one variant and analyse it; results are saved, then read back, as a later `report` would."""
    name = f"lab:{variant}"
    folder.mkdir(exist_ok=True)
    model, processor = lab.load(variant)
    loaded = adopt(model, processor, name=name, revision=lab.revision())
    modal = _capture(loaded, data, folder / "modal.zarr", MODAL_POINTS, config, say)
    modes = []
    for point in MODAL_POINTS[1:]:
        say(f"{name}: align {point}", 0, 1)
        modes.append(align(modal, text, point=point))
        save_result(modes[-1], folder / f"modes-{point}.safetensors")
    probes = probe(
        modal,
        MODAL_POINTS,
        LABELS,
        group="scan",
        progress=lambda done, total: say(f"{name}: probe", done, total),
    )
    save_result(probes, folder / "probes.json")
    scored = lab.LabDataset("test", size=config.ablate_samples)
    removed = ablate(
        loaded,
        scored,
        modes[0],
        _subsets(modes[0]),
        batch_size=config.batch_size,
        progress=lambda done, total: say(f"{name}: ablate", done, total),
    )
    save_result(removed, folder / "ablation.json")
    say(f"{name}: caption", 0, 1)
    captions = generate_captions(model, processor, scored)
    digits = scored.labels()["digit"]
    right = [named_digits(said) == [digit] for said, digit in zip(captions, digits, strict=True)]
    facts = {"caption_accuracy": sum(right) / len(right), "captions": float(len(right))}
    (folder / FACTS).write_text(json.dumps(facts) + "\n")
    tiles = [
        Tile(sample.media, sample.text, caption, correct=ok)
        for sample, caption, ok in zip(_first(scored), captions, right, strict=False)
    ]
    shown = Gallery(
        f"{variant}: held-out images",
        tiles,
        f"{100 * facts['caption_accuracy']:.1f} % of {len(right)} held-out images are captioned with the right digit.",
    )
    return replace(load_study(folder), gallery=shown)


def _subsets(modes: Modes) -> tuple[str, ...]:
    """The paper's conditions, as far as the modes allow them: nothing is removed where no mode is MS."""
    count = len(modes.ms)
    if count == 0:
        return ("top*1", "random*20")
    return ("ms", "ta", "random*20") if len(modes.ta) else ("ms", "random*20")


def _first(data: lab.LabDataset) -> list[Any]:
    return [data[index] for index in range(min(_SHOWN, len(data)))]


def _lab_facts() -> dict[str, Any]:
    facts = lab.facts()
    return {key: facts[key] for key in ("seed", "content_hash", "versions", "seconds") if key in facts}


_ABOUT = (
    "Two LLaVA models in miniature, with the same frozen text decoder and the same adapter recipe. **plain** has a "
    "vision encoder trained on pixels alone, **aligned** one trained contrastively with the captions. Images are "
    "held-out handwritten digits in a random colour, place and size on a random background; captions name the digit "
    "only, so everything else is modality-specific by construction.\n\n"
    "The text law is the same decoder reading the captions. The adapter's output is compared with the decoder's input "
    "embeddings of text, the space that both share, and deeper states with the same states under text."
)
