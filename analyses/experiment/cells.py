"""The cells of an experiment: what is computed from what, in an order in which it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modegap._names import did_you_mean
from modegap.analyses.ablate.config import AblateConfig
from modegap.analyses.align.config import AlignConfig
from modegap.analyses.bound.config import BoundConfig
from modegap.analyses.distance.config import DistanceConfig
from modegap.analyses.gmi.config import GmiConfig
from modegap.analyses.gradproj.config import GradprojConfig
from modegap.analyses.lipschitz.config import LipschitzConfig
from modegap.analyses.lora.config import InterventionConfig
from modegap.analyses.pertype.config import PertypeConfig
from modegap.analyses.probe.config import ProbeConfig
from modegap.analyses.swap.config import SwapConfig
from modegap.engine.capture.config import ExtractConfig

from .config import DataSpec, Experiment, ModelSpec, options_of


@dataclass(frozen=True, slots=True)
class CaptionsConfig:
    """Captions of the lab's first images by the lab's own generator, for the report's examples.

    Attributes:
        samples: images captioned.
    """

    samples: int = 360

    def __post_init__(self) -> None:
        """Check the options."""
        if self.samples < 1:
            raise ValueError(f"samples: got {self.samples}, expected at least 1")


@dataclass(frozen=True, slots=True)
class _Analysis:
    """An analysis: its options, the result's file, and what it reads beside the store (`?`: where it is there).

    `several` names the option that tells several runs of it apart. `version` goes up when the same options on the same
    inputs give another result, so that results of an older modegap are made again.
    """

    config: type[Any]
    file: str
    reads: tuple[str, ...] = ()
    model: bool = False
    several: str = ""
    version: int = 1


CAPTURE_VERSION = 1  # of what a capture writes, as `_Analysis.version`

# In the order in which they run. `text` is the text store, `modes` those of the adapter's output.
ANALYSES: Mapping[str, _Analysis] = {
    "align": _Analysis(AlignConfig, "modes{which}.safetensors", ("text",), several="point"),
    "probe": _Analysis(ProbeConfig, "probes{which}.json", several="pool"),
    "distance": _Analysis(DistanceConfig, "distances.json", ("text",)),
    "pertype": _Analysis(PertypeConfig, "pertype.json", ("modes", "probe?")),
    "lipschitz": _Analysis(LipschitzConfig, "lipschitz.json", (), True),
    "gradproj": _Analysis(GradprojConfig, "gradproj.json", ("modes",), True),
    "ablate": _Analysis(AblateConfig, "ablation.json", ("modes",), True),
    "swap": _Analysis(SwapConfig, "swap.json", ("modes",), True),
    "gmi": _Analysis(GmiConfig, "gmi.json", ("text",), True),
    "bound": _Analysis(BoundConfig, "bound.json", ("text", "lipschitz", "gmi?")),
    "captions": _Analysis(CaptionsConfig, "captions.jsonl", (), True),
    "lora": _Analysis(InterventionConfig, "lora{which}/lora.json", (), True, several="label"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to compute.

    Attributes:
        name: `<data set>/<model>/<what>`.
        kind: `capture` or a key of `ANALYSES`.
        model: name of the model.
        dataset: name of the data set.
        config: ExtractConfig or the analysis' options.
        folder: of the study it belongs to, relative to the experiment's.
        file: what it writes, relative to the experiment's folder.
        reads: role (`store`, `text`, `modes`, ...) to the name of the cell that makes it.
        needs_model: whether the model is loaded for it.
    """

    name: str
    kind: str
    model: str
    dataset: str
    config: Any
    folder: str
    file: str
    reads: Mapping[str, str]
    needs_model: bool


def cells_of(experiment: Experiment) -> list[Cell]:
    """All cells, each after those that it reads.

    Raises:
        ValueError: an unknown analysis or option, or an analysis that reads one which is not there.
    """
    _check(experiment.analyses, "analyses")
    for model, one in experiment.models.items():
        _check(one.analyses, f"models.{model}.analyses")
    found: list[Cell] = []
    for data, source in experiment.datasets.items():
        _check(source.analyses, f"datasets.{data}.analyses")
        users = {
            name: spec
            for name, spec in experiment.studied().items()
            if spec.datasets is None or data in spec.datasets
        }
        texts = dict.fromkeys(str(spec.text) for spec in users.values())
        captured = {name: _capture(experiment, name, data, source, text=True) for name in texts}
        found += captured.values()
        for name, spec in users.items():
            _check(experiment.analyses_of(data, name), "analyses")
            store = _capture(experiment, name, data, source, text=False)
            found += [store, *_analyses(experiment, name, data, store, captured[str(spec.text)])]
    return found


def study_folder(experiment: Experiment, data: str, model: str) -> str:
    """Where one model's results on one data set are, relative to the experiment's folder."""
    return model if len(experiment.datasets) == 1 else f"{data}/{model}"


def _capture(experiment: Experiment, name: str, data: str, source: DataSpec, *, text: bool) -> Cell:
    spec: ModelSpec = experiment.models[name]
    folder = study_folder(experiment, data, name)
    file = f"{folder}.zarr" if text else f"{folder}/modal.zarr"
    points = experiment.text_points if text else experiment.points
    given = {
        "points": tuple(points),
        **experiment.capture,
        **spec.capture,
        "model": spec.model,
        "dataset": source.dataset,
        "store": file,
        "as_text": text,
        "dtype": spec.dtype,
        "revision": spec.revision,
        "device_map": spec.device_map,
        "trust_remote_code": spec.trust_remote_code,
    }
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    config = options_of(ExtractConfig, given, f"capture of {name}")
    return Cell(f"{data}/{name}/capture", "capture", name, data, config, folder, file, {}, True)


def _analyses(experiment: Experiment, model: str, data: str, store: Cell, text: Cell) -> Iterator[Cell]:
    made: dict[str, Cell] = {"store": store, "text": text}
    analyses = experiment.analyses_of(data, model)
    for kind, facts in ANALYSES.items():
        if kind not in analyses:
            continue
        if kind == "captions" and not experiment.models[model].model.startswith("lab:"):
            continue
        given = analyses[kind]
        for one in given if isinstance(given, list | tuple) else [given]:
            config = options_of(facts.config, one, f"analyses.{kind}")
            which = getattr(config, facts.several) if facts.several else ""
            which = "" if which == "stored" else f"-{which}" if which else ""
            reads = {"store": store.name}
            for role in facts.reads:
                wanted = role.removesuffix("?")
                if wanted in made:
                    reads[wanted] = made[wanted].name
                elif not role.endswith("?"):
                    needed = "align" if wanted == "modes" else wanted
                    raise ValueError(
                        f"analyses.{kind} reads {needed}, which is not among the analyses; add it"
                    )
            cell = Cell(
                f"{data}/{model}/{kind}{which}",
                kind,
                model,
                data,
                config,
                store.folder,
                f"{store.folder}/{facts.file.format(which=which)}",
                reads,
                facts.model,
            )
            if kind == "align" and ("modes" not in made or config.point == "adapter_output"):
                made["modes"] = cell
            made.setdefault(kind, cell)
            yield cell


def _check(analyses: Mapping[str, Any], where: str) -> None:
    for kind, given in analyses.items():
        if kind not in ANALYSES:
            raise ValueError(
                f"{where}: no {kind!r}{did_you_mean(kind, ANALYSES)}; there are {', '.join(ANALYSES)}"
            )
        if not isinstance(given, list | tuple):
            continue
        several = ANALYSES[kind].several
        if not several:
            able = ", ".join(name for name, facts in ANALYSES.items() if facts.several)
            raise ValueError(
                f"{where}.{kind}: got a list, expected one set of options (only {able} take several)"
            )
        default = ANALYSES[kind].config.__dataclass_fields__[several].default
        runs = [one.get(several, default) if isinstance(one, Mapping) else default for one in given]
        runs = [
            one for one in runs if one is not dataclasses.MISSING
        ]  # reported as missing where it is built
        if len(set(runs)) < len(runs):
            raise ValueError(
                f"{where}.{kind}: {several} {', '.join(map(str, runs))}: one of them stands twice"
            )


def version_of(kind: str) -> int:
    """The version of what a kind of cell computes."""
    return CAPTURE_VERSION if kind == "capture" else ANALYSES[kind].version


def shares_pass(one: Cell, other: Cell) -> bool:
    """Whether two cells, gradient norms and projections, can be read from one pass of gradients."""
    from modegap.analyses.replayed.config import ReplayConfig

    kinds, places = (one.kind, other.kind), [(cell.model, cell.dataset) for cell in (one, other)]
    if kinds != ("lipschitz", "gradproj") or places[0] != places[1]:
        return False
    names = [field.name for field in dataclasses.fields(ReplayConfig)]
    return all(getattr(one.config, name) == getattr(other.config, name) for name in names)


def describe(config: Any) -> dict[str, Any]:
    """A config as plain values, without what only says where things lie."""
    from modegap.analyses.result import jsonable

    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "store"}
    return {name: jsonable(value) for name, value in found.items()}
