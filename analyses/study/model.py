"""One model's results, and the folder they are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modegap.analyses.ablate import AblationResult
from modegap.analyses.align import Modes
from modegap.analyses.bound import BoundResult
from modegap.analyses.distance import DistanceResult
from modegap.analyses.gmi import GmiResult
from modegap.analyses.gradproj import GradprojResult
from modegap.analyses.lipschitz import LipschitzResult
from modegap.analyses.lora import LoraResult
from modegap.analyses.pertype import PertypeResult
from modegap.analyses.probe import ProbeResult
from modegap.analyses.report import Gallery
from modegap.analyses.saved import load_result
from modegap.analyses.swap import SwapResult

RESULT_SUFFIXES = (".safetensors", ".json")
FACTS = "facts.json"
LORA = "lora.json"
# Results that a study has once, by the field that holds them.
_ONCE: dict[str, type] = {
    "ablation": AblationResult,
    "probes": ProbeResult,
    "distances": DistanceResult,
    "pertype": PertypeResult,
    "lipschitz": LipschitzResult,
    "gradproj": GradprojResult,
    "swap": SwapResult,
    "gmi": GmiResult,
    "bound": BoundResult,
}


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """Results of one model.

    Attributes:
        name: what tables and figures call the model.
        modes: alignments, the first being the one that the headline quotes.
        probes: probes along the hook points.
        media_probes: the same with mean rows over the media tokens alone.
        ablation: the causal ablation.
        lipschitz: gradient norms of the decoder.
        gradproj: its sensitivity along the modes.
        swap: what it notices of a swapped class component.
        gmi: what it can use.
        bound: the bounds beside the measured gap.
        distances: distances between the modal and the text law.
        pertype: where the classes of each label differ.
        gallery: examples to look at.
        facts: measured numbers to quote beside the results, name to value.
        provenance: store name to its provenance.
        lora: what training the decoder for a label did, one entry a label.
    """

    name: str
    modes: tuple[Modes, ...] = ()
    probes: ProbeResult | None = None
    media_probes: ProbeResult | None = None
    ablation: AblationResult | None = None
    lipschitz: LipschitzResult | None = None
    gradproj: GradprojResult | None = None
    swap: SwapResult | None = None
    gmi: GmiResult | None = None
    bound: BoundResult | None = None
    distances: DistanceResult | None = None
    pertype: PertypeResult | None = None
    gallery: Gallery | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lora: tuple[LoraResult, ...] = ()


def load_study(folder: str | Path) -> Study:
    """The study of a folder: the results that `--out` put there, and its stores' provenance.

    LoRA interventions, each of which has a folder of its own, are taken from its subfolders too. Alignments come
    in the order of their file names, `adapter_output` first.

    Raises:
        ValueError: no folder, no result in it, two results of a kind that a study has once, or a damaged file.
        StoreError: a store that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}; give the folder that `modegap align --out` and the others wrote to"
        )
    modes: list[Modes] = []
    once: dict[str, Any] = {}
    trained: list[LoraResult] = []
    for file in [*sorted(folder.iterdir()), *sorted(folder.glob(f"*/{LORA}"))]:
        if file.suffix not in RESULT_SUFFIXES or file.name == FACTS or file.name.startswith("."):
            continue
        result = load_result(file)
        if isinstance(result, Modes):
            modes.append(result)
            continue
        if isinstance(result, LoraResult):
            trained.append(result)
            continue
        kind = next(name for name, cls in _ONCE.items() if isinstance(result, cls))
        if isinstance(result, ProbeResult) and result.pool == "modality":
            kind = "media_probes"
        if kind in once:
            raise ValueError(f"{folder} holds two results of the kind {kind}; move {file.name} elsewhere")
        once[kind] = result
    if "probes" not in once and "media_probes" in once:  # the store's only pooling
        once["probes"] = once.pop("media_probes")
    if not modes and not once and not trained:
        raise ValueError(
            f"{folder} holds no results; run `modegap align MODAL TEXT --out {folder}/modes.safetensors`"
        )
    modes.sort(key=lambda one: one.point != "adapter_output")
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).is_file() else {}
    return Study(
        folder.name, tuple(modes), facts=facts, lora=tuple(trained), provenance=_provenance(folder), **once
    )


def _provenance(folder: Path) -> dict[str, Mapping[str, Any]]:
    from modegap.stores import ActivationStore

    return {path.name: ActivationStore.open(path).provenance for path in sorted(folder.glob("*.zarr"))}
