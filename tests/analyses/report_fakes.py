"""A report of realistic size made without a model: results shaped and certified like real ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from modegap.analyses.report import Gallery, Headline, Item, Report, Section, Tile
from modegap.analyses.report.figures import ablation_effect, mode_spectrum, probe_curves
from modegap.analyses.table import Cell, Column, Table
from modegap.engine.certificate import Certificate

POINTS = ("encoder_output", "adapter_output", "llm_hidden_16", "llm_final")
CERTIFICATE = Certificate(
    mode="precise",
    kernel_paths={"covariance": {"name": "triton", "why": "fp16 rows on sm_90"}},
    count=121_482,
    width=4096,
    rank=3_871,
    audit_error=3.1e-7,
    store_hashes={"modal": "sha256:9f3b6c1d2e8a47", "text": "sha256:02aa71e9cd55b0"},
    versions={"modegap": "0.1.0", "torch": "2.13.0", "zarr": "3.1.6"},
)
POOR = replace(CERTIFICATE, count=2620, n_over_d=None, rank=2619, overflow_count=12, audit_error=4e-5)


@dataclass(frozen=True)
class FakeResult:
    """Anything with figure(), table(), to_json() and a certificate."""

    chart: Any
    rows: Table
    certificate: Certificate = CERTIFICATE
    warnings: tuple[str, ...] = ()

    def figure(self) -> Any:
        return self.chart

    def table(self) -> Table:
        return self.rows

    def to_json(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows.rows]}


def modes(models: int, count: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `mode_spectrum` for several models; mode 0 and some others are modality-specific."""
    rng = np.random.default_rng(seed)
    names = ["ultravox", "qwen2audio", "llava", "prismatic_dinov2", "prismatic_siglip"][:models]
    rows: list[dict[str, Any]] = []
    for name in names:
        values = 40.0 * np.arange(1, count + 1) ** -1.3
        rho = np.exp(rng.normal(0.9, 0.8, count)) * np.where(rng.random(count) < 0.12, 0.08, 1.0)
        rho[0] = 0.001
        spread = np.exp(rng.uniform(0.1, 0.8, count))
        share = np.cumsum(values) / values.sum()
        rows += [
            {
                "model": name,
                "mode": k,
                "eigenvalue": float(values[k]),
                "rho": float(rho[k]),
                "rho_low": float(rho[k] / spread[k]),
                "rho_high": float(rho[k] * spread[k]),
                "is_ms": bool(rho[k] < 0.5),
                "cumulative": float(share[k]),
            }
            for k in range(count)
        ]
    return rows


def probes(labels: tuple[str, ...] = ("digit", "color", "place", "size")) -> list[dict[str, Any]]:
    """Rows of `probe_curves`: the first label stays readable, the others fade."""
    return [
        {
            "label": label,
            "point": point,
            "accuracy": 0.95 - 0.07 * i * j,
            "std": 0.03,
            "chance": 1 / (4 + i),
        }
        for i, label in enumerate(labels)
        for j, point in enumerate(POINTS)
    ]


def ablation() -> list[dict[str, Any]]:
    """Rows of `ablation_effect`: three conditions and twenty random draws."""
    keys = ("condition", "delta", "low", "high", "modes", "variance", "p")
    conditions = [
        ("ms", -1.41, -1.9, -0.9, 11, 0.636, 2e-6),
        ("ta", -0.3, -0.6, 0.02, 11, 0.294, 0.06),
        ("random*20", 0.27, -0.1, 0.62, 11, 0.028, 0.21),
    ]
    draws = np.random.default_rng(2).normal(0.27, 0.3, 20)
    return [
        *(dict(zip(keys, values, strict=True)) for values in conditions),
        *({"condition": "random*20", "delta": float(delta), "draw": True} for delta in draws),
    ]


def table(title: str = "Modes", rows: int = 12) -> Table:
    """A table with every kind of cell."""
    columns = ["mode", Column("variance", "", ".3e"), Column("cumulative", "%", ".1f"), "rho", "kind"]
    cells: list[list[Cell]] = [
        [
            k,
            40.0 / (k + 1) ** 1.3,
            100.0 * (k + 1) / rows,
            None if k == 1 else 0.37 * k,
            "TA" if k % 3 else "MS",
        ]
        for k in range(rows)
    ]
    return Table(title, columns, cells, ["Top modes by variance.", "`rho` below 0.5 is modality-specific."])


def gallery(tiles: int = 12, text: str = "a photo of the digit seven") -> Gallery:
    """Small pictures, every fourth captioned wrongly."""
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    pictures = [np.stack([x * 8, y * 8, np.full_like(x, 20 * i)], -1).astype(np.uint8) for i in range(tiles)]
    shown = [
        Tile(picture, text, text if i % 4 else "a photo of the digit one", bool(i % 4), "red, left, small")
        for i, picture in enumerate(pictures)
    ]
    return Gallery("What the model sees and says", shown, "Images of the test split.")


def demo_report(label: str = "digit", count: int = 100) -> Report:
    """A report with every kind of block; `label` stands wherever a store's own name would."""
    spectrum = FakeResult(mode_spectrum(modes(1, count)), table("Modes of adapter_output"))
    five = FakeResult(
        mode_spectrum(modes(5, count)), table("Five models", 5), POOR, (f"n/d is 0.64 for {label}: below 5.",)
    )
    removed = FakeResult(ablation_effect(ablation()), table("Conditions", 3))
    wide = Table(
        "Probe accuracy",
        ["label", *(f"llm_hidden_{k}" for k in range(14))],
        [[label, *(0.5 + k / 100 for k in range(14))], ["color", *[0.25] * 14]],
    )
    curves = probe_curves(probes((label, "color", "place", "size")))
    return Report(
        title=f"What the decoder cannot read: {label}",
        summary=[
            "The adapter passes **color, place and size** on; the decoder never uses them.",
            "Removing the modality-specific modes of `adapter_output` lowers the loss by 1.4 %, more than "
            f"any of 20 random controls. Labels: {label}.",
        ],
        headlines=[
            Headline("Modality-specific modes", "11 of 100", "They hold 64 % of the variance."),
            Headline("Loss without them", -1.41, "Better without.", "%", -1.9, -0.9, "95 %, bootstrap"),
            Headline("Probe for color", 0.983, "A probe reads it.", "", 0.971, 0.99, "5 splits"),
            Headline(f"W1 ({label})", 17.83, "", "", 17.1, 18.6, "95 %"),
        ],
        sections=[
            Section(
                "Modes",
                "modes",
                "A mode is an eigenvector of the modal covariance.\n\nBelow 0.5 the text law has less than "
                "half the variance that the modal law has.",
                [
                    Item(
                        spectrum,
                        title="Variance and alignment",
                        caption="Bars: 95 % jackknife intervals of ρ.",
                    ),
                    Item(five, name="five"),
                ],
            ),
            Section("Ablation", "ablation", "", [Item(removed, title="Removing modes")]),
            Section("Probes", "probes", "", [Item(curves, title=f"Probe accuracy: {label}"), wide]),
            Section("Examples", "examples", "", [gallery(text=label)]),
        ],
        provenance={
            "Model": {"name": "lab:plain", "dtype": "float32", "prompt": "<image>\nDescribe this image."},
            "Data": {"data set": label, "samples": 360, "config_hash": "0f" * 32},
            "Machine": {"cpu": "x86-64", "gpu": None, "versions": {"torch": "2.13.0", "numpy": "2.4.0"}},
        },
    )
