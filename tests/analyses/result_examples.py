"""One small result of every class, drawn from seeded random numbers, and studies like those of the paper's systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modegap.analyses.ablate import AblateConfig, AblationResult, Condition, Draw
from modegap.analyses.ablate.statistics import Paired
from modegap.analyses.ablate.subsets import Subset
from modegap.analyses.align import AlignConfig, Modes
from modegap.analyses.bound import BoundConfig, BoundResult
from modegap.analyses.bound.outcome import Pair, Penalty, Prefactor
from modegap.analyses.distance import DistanceConfig, DistanceResult
from modegap.analyses.distance.outcome import ClassDistance, PairDistance
from modegap.analyses.distance.transport import Estimate as Between
from modegap.analyses.gmi import GmiConfig, GmiResult
from modegap.analyses.gmi.outcome import Attribute, LawGmi
from modegap.analyses.gradproj import GradprojConfig, GradprojResult
from modegap.analyses.gradproj.outcome import Contrast
from modegap.analyses.lipschitz import LipschitzConfig, LipschitzResult
from modegap.analyses.lipschitz.diameter import Diameter
from modegap.analyses.lipschitz.outcome import Spread
from modegap.analyses.lora import Arm, Asked, LoraConfig, LoraResult
from modegap.analyses.lora.outcome import PerSample, Written
from modegap.analyses.pertype import PertypeConfig, PertypeResult
from modegap.analyses.pertype.outcome import Correlation, TypeAlignment
from modegap.analyses.probe import Cell, ProbeConfig, ProbeResult
from modegap.analyses.probe.fit import Scores
from modegap.analyses.replayed.intervals import Estimate
from modegap.analyses.study import Study
from modegap.analyses.swap import SwapConfig, SwapResult
from modegap.analyses.swap.outcome import Swapped
from modegap.engine.certificate import Certificate
from modegap.engine.lora import Epoch, Training

POINTS = ("encoder_output", "adapter_output", "llm_hidden_16", "llm_final")
SEEDS = (42, 43, 44, 45, 46)
CERTIFICATE = Certificate(
    "precise",
    {"covariance": {"name": "syrk", "why": "the CPU"}},
    2620,
    40,
    rank=40,
    audit_error=1e-7,
    store_hashes={"modal": "sha256:aa11", "text": "sha256:bb22"},
)
Accuracies = Mapping[str, Sequence[float]]
LABELS: Accuracies = {"speaker": (0.72, 0.6, 0.63, 0.55), "lexical": (0.42, 0.28, 0.57, 0.53)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def modes(seed: int = 0, point: str = "adapter_output", text: str = "sha256:bb22", d: int = 40) -> Modes:
    r = rng(seed)
    rho = np.exp(r.normal(0.5, 1.0, d))
    rho[0] = 0.01
    spread = np.exp(r.uniform(0.05, 0.5, d))
    hashes = {"modal": f"sha256:aa{seed}", "text": text}
    return Modes(
        point=point,
        text_point="text_embedding",
        rows="tokens",
        config=AlignConfig(point=point),
        eigenvalues=40.0 * np.arange(1, d + 1) ** -1.3,
        U=np.linalg.qr(r.standard_normal((d, d)))[0],
        text_variance=rho * 40.0 * np.arange(1, d + 1) ** -1.3,
        text_trace=80.0,
        rho=rho,
        rho_low=rho / spread,
        rho_high=rho * spread,
        floor=np.zeros(d),
        considered=np.arange(d),
        n=2620,
        n_text=2600,
        n_samples=300,
        n_samples_text=300,
        shrinkage=(0.0, 0.0),
        groups=20,
        paired=True,
        warnings=("few rows: n/d is 1.2",),
        certificate=replace(CERTIFICATE, store_hashes=hashes),
        text_certificate=CERTIFICATE,
    )


def probes(
    labels: Accuracies = LABELS, *, seed: int = 0, pool: str = "all", law: Any = "default", shift: float = 0.0
) -> ProbeResult:
    r = rng(seed)
    cells = []
    for label, values in labels.items():
        for point, value in zip(POINTS, values, strict=True):
            drawn = np.clip(value + shift + r.normal(0, 0.02, len(SEEDS)), 0, 1)
            scores = tuple(
                Scores(s, float(a), float(a), True, 2096, 524, 1.0, 1.1, 0.9)
                for s, a in zip(SEEDS, drawn, strict=True)
            )
            cells.append(Cell(point, label, 2620, 40, 0.05, scores, entropy=3.6))
    cells += [
        Cell(point, "constant", message="only the class 'x'; a probe needs two classes") for point in POINTS
    ]
    config = ProbeConfig(
        points=POINTS, labels=(*labels, "constant"), law=law, pool="modality" if pool != "all" else "stored"
    )
    return ProbeResult(config, POINTS, (*labels, "constant"), tuple(cells), CERTIFICATE, pool)


def paired(percent: float, half: float = 0.5) -> Paired:
    return Paired(percent / 50, percent, percent - half, percent + half, -3.1, 0.002, 60)


def ablation(seed: int = 0, ms: float = -1.4) -> AblationResult:
    r = rng(seed)

    def condition(name: str, percent: float, draws: int = 1) -> Condition:
        made = tuple(
            Draw(Subset(name, (0, 1, 2)), 0.6, 0.5, r.random(4), paired(percent + 0.2 * k))
            for k in range(draws)
        )
        return Condition(name, made, paired(percent))

    return AblationResult(
        AblateConfig(),
        "model",
        "adapter_output",
        ("a", "b", "c", "d"),
        r.random(4) + 1,
        (condition("ms", ms), condition("ta", -0.3), condition("random*20", 0.3, 20)),
        (),
        CERTIFICATE,
    )


def lipschitz(seed: int = 0, mean: float = 9.08) -> LipschitzResult:
    norms = mean * np.exp(rng(seed).normal(0, 0.3, 60))
    s = Spread(
        60, float(norms.mean()), 0.95 * mean, 1.05 * mean, 1.0, float(np.median(norms)), 0.5 * mean, 0.8 * mean,
        1.2 * mean, 1.6 * mean, 1.5 * mean, 1.8 * mean, 2.0 * mean, 2.2 * mean,
    )  # fmt: skip
    return LipschitzResult(
        LipschitzConfig(),
        "model",
        "modal.zarr",
        "librispeech:test-clean",
        "adapter_output",
        tuple(f"s{k}" for k in range(60)),
        norms,
        norms / 2,
        -np.ones(60),
        np.full(60, 12),
        s,
        (),
        Diameter(10.3, 10.3, 9.0, 4.0, 12.0, 60, 1000),
        (),
        0,
        CERTIFICATE,
    )


def gradproj(seed: int = 0) -> GradprojResult:
    m, r = modes(seed), rng(seed)
    contrast = Contrast(0.2, 0.19, Estimate(0.94, 0.9, 0.99), 0.11, 0.28, 0.05)
    g = r.random(m.d) + 0.1
    return GradprojResult(
        GradprojConfig(), "model", "modal.zarr", "adapter_output", 60, m.considered, m.rho, m.is_ms, 0.5, g, g * 2,
        0.4, contrast, contrast, (), 0, CERTIFICATE,
    )  # fmt: skip


def swap(seed: int = 0) -> SwapResult:
    r = rng(seed)
    moved = [
        Swapped(name, (0, 1), 0.6, r.random(8), r.random(8) + 0.1, r.random(8) + 1, r.random(8), paired(change),
                Estimate(0.4, 0.3, 0.5), 0.4, 1.2, Estimate(0.3, 0.2, 0.4))
        for name, change in (("ms", -32.0), ("ta", -10.0))
    ]  # fmt: skip
    return SwapResult(
        SwapConfig(), "model", "modal.zarr", "adapter_output", ("one", "two"), tuple("abcdefgh"),
        np.arange(8) % 2, (np.arange(8)[None] + 1) % 2, r.random(8), tuple(moved),
        (("ms", "ta", Estimate(0.5, 0.4, 0.6), Estimate(0.7, 0.5, 0.9)),), (("i", "too long"),), 1, CERTIFICATE,
    )  # fmt: skip


def gmi(seed: int = 0) -> GmiResult:
    laws = tuple(
        LawGmi(law, f"{law}.zarr", "adapter_output", ("a", "b"), rng(seed).random(2),
               Estimate(value, value - 0.1, value + 0.1), 0.01, value + 0.2, 1.5, ())
        for law, value in (("modal", 0.4), ("text", 1.4))
    )  # fmt: skip
    attribute = Attribute(
        "modal", "speaker", 60, ("one", "two"), 0.69, Estimate(0.5, 0.4, 0.6), Estimate(0.05, 0.0, 0.1), 1.2,
        Estimate(0.45, 0.3, 0.6), 0.9, 0.5, 0.5, 0.8,
    )  # fmt: skip
    config = GmiConfig(labels=("speaker", "alone"))
    alone = Attribute("modal", "alone", message="one class")
    return GmiResult(
        config, "model", laws, Estimate(-1.0, -1.2, -0.8), (attribute, alone), 32000, 0, CERTIFICATE
    )


def bound() -> BoundResult:
    prefactors = tuple(
        Prefactor(constant, name, 9.0, extent, 40.0, 41.5)
        for constant in ("positions", "shift")
        for name, extent in (("D", 10.3), ("D_eff", 4.0))
    )
    pair = Pair(
        "model / data", 300, 9.0, 17.8, 18.0, 6.0, 19.0, 160.0, prefactors, Estimate(-1.0, -1.2, -0.8)
    )
    penalties = (
        Penalty("speaker", 60, 2, 0.3, -0.5, -2.0, 17.0, 5.1, 30.0),
        Penalty("alone", message="one class"),
    )
    return BoundResult(BoundConfig(labels=("speaker", "alone")), (pair,), penalties, CERTIFICATE)


def distance(w1: float = 17.8) -> DistanceResult:
    pairs = tuple(
        PairDistance(
            point, text, "tokens", 2620, 2600, 40, Between(w1 * k, w1 * k * 0.95, w1 * k * 1.05), 1000,
            4.0, 500, w1 / 9, 0.1, w1 * 2, Between(0.2, 0.1, 0.3), 0.2, 3.0, 0.4, 300, 12.0, 20.0, 10.0, 9.0, 4.0, 5.0,
        )
        for k, (point, text) in enumerate(
            (("adapter_output", "text_embedding"), ("llm_hidden_16", "llm_hidden_16"), ("llm_final", "llm_final")), 1
        )
    )  # fmt: skip
    pairs = (*pairs[:2], replace(pairs[2], w1=None, messages=("W1: fewer than 3 rows",)))
    classes = (ClassDistance("adapter_output", "one", 50, 40, Between(9.0, 8.0, 10.0)),
               ClassDistance("adapter_output", "two", 1, 40, None, "fewer than 3 rows"))  # fmt: skip
    return DistanceResult(DistanceConfig(label="speaker"), pairs, classes, CERTIFICATE, CERTIFICATE)


def pertype() -> PertypeResult:
    types = (
        TypeAlignment("speaker", 2620, 40, 0.6, 0.3, 0.55, 0.5, 0.8, 0.9, 11, 4.0, 3.0, 1.0, 1.1, 45, 0.05),
        TypeAlignment("lexical", 2620, 50, 0.4, 0.5, 0.35, 0.5, 1.8, 0.9, 11, 2.0, 3.0, 1.0, 1.1, 45, -0.3),
        TypeAlignment("constant", message="only one class"),
    )
    correlations = (Correlation("alignment", 4, -0.4, 0.75),)
    return PertypeResult(
        PertypeConfig(), "adapter_output", "text_embedding", "tokens", 0.5, 11, 29, types, correlations, CERTIFICATE
    )  # fmt: skip


def lora(seed: int = 0, label: str = "speaker") -> LoraResult:
    ids = tuple(f"s{i}" for i in range(40))

    def values(mean: float) -> Any:
        return rng(seed).normal(mean, 0.1, len(ids))

    def arm(name: str, accuracy: float, used: float) -> Arm:
        correct = (rng(seed).random(len(ids)) < accuracy).astype(float)
        access = Attribute(
            "modal", label, 40, ("one", "two"), 0.69, Estimate(0.5, 0.4, 0.6), Estimate(used, used - 0.1, used + 0.1),
            1.2, Estimate(0.5 - used, 0.4 - used, 0.6 - used), 0.9, accuracy, 0.5, 0.8,
        )  # fmt: skip
        score = Estimate(float(correct.mean()), float(correct.mean()) - 0.1, float(correct.mean()) + 0.1)
        asked = Asked(
            label, f"Name the {label}.", score, 0.5, access, ids, correct, values(used), values(0.5)
        )
        epochs = (Epoch(1, 0.9, 0.8, 1400, 12.5), Epoch(2, 0.7, 0.75, 1400, 12.0))
        training = None if name == "base" else Training(epochs, 2, 350, False, 0, 98304)
        return Arm(
            name=name,
            adapter=None if name == "base" else f"out/{name}/adapter",
            training=training,
            asked=(asked,),
            written=Written(label, score, 0.1, ids, correct, ("one", "two")),
            probes=probes(seed=seed + len(name), shift=used / 10),
            sensitivity=PerSample(Estimate(9.0, 8.5, 9.5), ids, values(9.0)),
            gmi=PerSample(Estimate(1.0, 0.9, 1.1), ids, values(1.0)),
        )

    arms = (arm("base", 0.5, 0.05), arm("label", 0.9, 0.4), arm("control", 0.5, 0.05))
    question = f"Name the {label}."
    return LoraResult(
        LoraConfig(questions={label: question}), "model", "modal.zarr", "data", label, question, ("one", "two"), 1400,
        200, 40, arms, (("alone", "one class"),), (("s99", "it has no target text"),), CERTIFICATE,
    )  # fmt: skip


def every() -> dict[str, Any]:
    """One result of every class that is saved, by name."""
    return {
        "align": modes(),
        "probe": probes(),
        "distance": distance(),
        "pertype": pertype(),
        "lipschitz": lipschitz(),
        "gradproj": gradproj(),
        "ablate": ablation(),
        "swap": swap(),
        "gmi": gmi(),
        "bound": bound(),
        "lora": lora(),
    }


_SYSTEMS: dict[str, tuple[str, str, dict[str, Accuracies]]] = {
    "ultravox": (
        "fixie-ai/ultravox-v0_6-llama-3_1-8b",
        "llama",
        {
            "librispeech:test-clean": LABELS,
            "cremad": {"emotion": (0.68, 0.62, 0.6, 0.56), "speaker": (0.51, 0.2, 0.2, 0.14)},
            "esc50": {"sound": (0.76, 0.65, 0.64, 0.58)},
        },
    ),
    "qwen2audio": (
        "Qwen/Qwen2-Audio-7B-Instruct",
        "llama",
        {
            "librispeech:test-clean": {
                "speaker": (0.98, 0.96, 0.66, 0.59),
                "lexical": (0.27, 0.24, 0.51, 0.6),
            },
            "cremad": {"emotion": (0.87, 0.87, 0.88, 0.88), "speaker": (0.88, 0.82, 0.72, 0.56)},
            "esc50": {"sound": (0.95, 0.95, 0.96, 0.96)},
        },
    ),
    "llava": (
        "llava-hf/llava-1.5-7b-hf",
        "vicuna",
        {"coco:val2017": {"lexical": (0.63, 0.62, 0.67, 0.67), "object_category": (0.78, 0.77, 0.79, 0.81)}},
    ),
    "prismatic-dinov2": (
        "TRI-ML/prismatic-vlms/dinov2-224px+7b",
        "vicuna",
        {"coco:val2017": {"lexical": (0.61, 0.64, 0.65, 0.66), "object_count": (0.58, 0.59, 0.61, 0.61)}},
    ),
    "prismatic-siglip": (
        "TRI-ML/prismatic-vlms/siglip-224px+7b",
        "vicuna",
        {"coco:val2017": {"lexical": (0.64, 0.66, 0.68, 0.66), "object_count": (0.59, 0.6, 0.65, 0.65)}},
    ),
}


def studies() -> list[Study]:
    """Nine studies named as `modegap run paper` names them, with random numbers near the published ones."""
    found = []
    for name, (model, text, data) in _SYSTEMS.items():
        for seed, (dataset, labels) in enumerate(data.items(), 3 * len(found)):
            speech = text == "llama"
            found.append(
                Study(
                    f"{name} on {dataset.partition(':')[0]}",
                    (modes(seed, text=f"sha256:{text}{dataset}"), modes(seed + 90, "llm_final")),
                    probes(labels, seed=seed),
                    probes(labels, seed=seed + 1, pool="modality", shift=0.004) if speech else None,
                    ablation(seed, ms=-1.4 - seed / 3),
                    lipschitz(seed, 9.0 / (1 + seed)),
                    gradproj(seed),
                    swap(seed) if speech else None,
                    gmi(seed),
                    bound(),
                    distance(17.8 + seed),
                    pertype(),
                    provenance={"modal.zarr": {"model": model, "dataset": dataset, "as_text": False}},
                    lora=(lora(seed, "emotion"),) if dataset == "cremad" else (),
                )
            )
    return found
