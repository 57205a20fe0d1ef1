"""The report's parts: figures from rows and from Results, badges, numbers and prose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modegap.analyses.ablate import AblateConfig, AblationResult, Condition, Draw
from modegap.analyses.ablate.statistics import Paired
from modegap.analyses.ablate.subsets import Subset
from modegap.analyses.align import AlignConfig, Modes
from modegap.analyses.probe import Cell, ProbeConfig, ProbeResult
from modegap.analyses.probe.fit import Scores
from modegap.analyses.report import Item, Report, Section, write_report
from modegap.analyses.report.badges import badges, certificates
from modegap.analyses.report.charts import specification
from modegap.analyses.report.figures import (
    ablation_effect,
    ablation_rows,
    mode_rows,
    mode_spectrum,
    probe_curves,
    probe_rows,
)
from modegap.analyses.report.figures.axes import log_axis
from modegap.analyses.report.text import cell, inline, number, paragraphs, slug, span
from modegap.engine.certificate import Certificate
from tests.analyses.report_fakes import CERTIFICATE, POOR, FakeResult, modes, table

GOOD = Certificate(mode="precise", kernel_paths={}, count=500, width=4, rank=4, audit_error=1e-7)


def real_modes() -> Modes:
    values = np.array([4.0, 2.0, 1.0, 1e-9])
    rho = np.array([0.0, 3.0, 0.2, np.nan])
    return Modes(
        point="adapter_output",
        text_point="text_embedding",
        rows="tokens",
        config=AlignConfig(),
        eigenvalues=values,
        U=np.eye(4),
        text_variance=rho * values,
        rho=rho,
        rho_low=np.array([0.0, 2.0, np.nan, np.nan]),
        rho_high=np.array([0.1, 5.0, np.nan, np.nan]),
        floor=np.zeros(4),
        considered=np.arange(3),
        n=500,
        n_text=400,
        n_samples=50,
        n_samples_text=40,
        shrinkage=(0.0, 0.0),
        groups=10,
        paired=True,
        warnings=("one mode lies under the noise floor",),
        certificate=GOOD,
        text_certificate=replace(GOOD, count=12, n_over_d=None),
    )


def real_probes() -> ProbeResult:
    def score(seed: int, accuracy: float) -> Scores:
        return Scores(seed=seed, accuracy=accuracy, macro_f1=accuracy, converged=True, n_train=8, n_test=2)

    cells = (
        Cell("adapter_output", "digit", 10, 4, 0.3, (score(42, 0.8), score(43, 0.9))),
        Cell("llm_final", "digit", 10, 4, 0.3, (score(42, 0.7), score(43, 0.7))),
        Cell("llm_final", "scan", message="one sample a class"),
    )
    points, labels = ("adapter_output", "llm_final"), ("digit", "scan")
    return ProbeResult(ProbeConfig(), points, labels, cells, GOOD)


def real_ablation() -> AblationResult:
    def paired(percent: float) -> Paired:
        return Paired(percent / 100, percent, percent - 1, percent + 1, 2.0, 0.05, 6)

    def draw(name: str, seed: int | None, percent: float) -> Draw:
        return Draw(Subset(name, (seed or 0, 5), seed), 0.25, 0.2, np.full(6, 1.0), paired(percent))

    random = tuple(draw("random", seed, percent) for seed, percent in ((1, 0.5), (2, 1.5), (3, 4.0)))
    conditions = (
        Condition("ms", (draw("ms", None, -2.0),), paired(-2.0)),
        Condition("random*3", random, paired(2.0)),
    )
    ids = tuple("abcdef")
    return AblationResult(AblateConfig(), "lab:plain", "adapter_output", ids, np.ones(6), conditions, GOOD)


def rows_of(chart: Any) -> list[dict[str, Any]]:
    (values,) = specification(chart)["datasets"].values()
    return list(values)


def test_rows_of_modes() -> None:
    rows = mode_rows(real_modes(), "lab")
    assert [row["mode"] for row in rows] == [0, 1, 2]
    assert [row["is_ms"] for row in rows] == [True, False, True]
    assert [row["rho_low"] for row in rows] == [0.0, 2.0, None]
    assert rows[1]["cumulative"] == pytest.approx(6 / 7)
    assert {row["model"] for row in rows} == {"lab"}


def test_spectrum_draws_a_rho_of_zero_at_the_edge_and_keeps_its_value() -> None:
    rows = rows_of(mode_spectrum(mode_rows(real_modes(), "lab"), threshold=0.5))
    assert [row["rho"] for row in rows] == [0.0, 3.0, 0.2]
    assert [row["rho_drawn"] for row in rows] == [pytest.approx(3e-8), 3.0, 0.2]
    assert [row["high_drawn"] for row in rows] == [0.1, 5.0, None]
    assert {row["threshold"] for row in rows} == {0.5}


@pytest.mark.parametrize(("models", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3)])
def test_spectrum_sets_models_side_by_side(models: int, columns: int) -> None:
    spec = specification(mode_spectrum(modes(models, count=5)))
    assert len(spec["concat"]) == models
    assert spec["columns"] == columns


def test_spectra_share_one_scale_of_rho() -> None:
    rows = [
        {**row, "rho": row["rho"] * 10.0 ** (4 * (row["model"] != "ultravox"))} for row in modes(2, count=5)
    ]
    spec = specification(mode_spectrum(rows))
    domains = [
        layer["encoding"]["y"]["scale"]["domain"]
        for panel in spec["concat"]
        for layer in panel["vconcat"][1]["layer"]
    ]
    assert len(domains) == 6
    assert all(domain == domains[0] for domain in domains)


def test_rows_of_probes_leave_out_what_was_not_fitted() -> None:
    rows = probe_rows(real_probes(), "lab")
    assert [(row["label"], row["point"]) for row in rows] == [
        ("digit", "adapter_output"),
        ("digit", "llm_final"),
    ]
    assert rows[0]["accuracy"] == pytest.approx(0.85)
    assert rows[0]["std"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert rows[0]["chance"] == 0.25
    drawn = rows_of(probe_curves(rows))
    assert drawn[0]["high"] == pytest.approx(0.85 + rows[0]["std"])


def test_probe_error_bars_stay_within_0_and_1() -> None:
    cells = [{"label": "a", "point": "p", "accuracy": 0.99, "std": 0.05, "chance": 0.5}]
    cells.append({"label": "a", "point": "q", "accuracy": 0.01, "std": None, "chance": 0.5})
    drawn = rows_of(probe_curves(cells))
    assert [(row["low"], row["high"]) for row in drawn] == [(pytest.approx(0.94), 1.0), (0.01, 0.01)]


def test_several_models_get_a_legend() -> None:
    both = probe_rows(real_probes(), "plain") + probe_rows(real_probes(), "aligned")
    layer = specification(probe_curves(both))["concat"][0]["layer"][1]
    assert layer["encoding"]["color"]["scale"]["domain"] == ["plain", "aligned"]
    assert layer["encoding"]["color"]["legend"] == {"title": None}


def test_rows_of_an_ablation() -> None:
    rows = ablation_rows(real_ablation())
    assert [row["condition"] for row in rows] == ["ms", *["random*3"] * 4]
    assert [row["delta"] for row in rows if row["draw"]] == [0.5, 1.5, 4.0]
    assert rows[0] | {} == {
        "condition": "ms",
        "delta": -2.0,
        "low": -3.0,
        "high": -1.0,
        "modes": 2,
        "variance": 0.25,
        "p": 0.05,
        "draw": False,
    }
    spec = specification(ablation_effect(rows))
    dots = spec["layer"][-1]["encoding"]
    assert dots["color"]["scale"] == {"domain": ["ms", "random*3"], "range": ["#D55E00", "#7A828E"]}


@pytest.mark.parametrize("figure", [mode_spectrum, probe_curves, ablation_effect])
def test_a_figure_of_nothing_is_an_error(figure: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        figure([])


def test_log_axis_covers_the_values_in_whole_decades() -> None:
    axis = log_axis("t", [3e-5, None, 40.0])
    assert axis["scale"]["domain"] == [1e-5, 100.0]
    assert axis["axis"]["values"] == [1e-5, 1e-3, 0.1, 10.0]
    assert "'-5':'1e-5','-3':'0.001','-1':'0.1','1':'10'" in axis["axis"]["labelExpr"]
    assert log_axis("t", [1.0])["scale"]["domain"] == [1.0, 10.0]


def test_real_results_make_a_report(tmp_path: Path) -> None:
    results = [real_modes(), Item(real_ablation(), title="Ablation"), Item(real_probes(), name="probes")]
    html = write_report(Report("T", [], [Section("S", "s", "", results)]), tmp_path).read_text(
        encoding="utf-8"
    )
    assert {p.stem for p in tmp_path.glob("figures/*.png")} == {"s-modes", "s-ablation", "probes"}
    assert {p.stem for p in tmp_path.glob("tables/*.csv")} == {"s-modes", "s-ablation", "probes"}
    assert html.count("one mode lies under the noise floor") == 1
    assert html.count('<li class="part">text</li>') == 2
    assert (
        html.count('class="badge warn"') == 2
    )  # n/d of the text law, under the result and in its certificate
    spec = json.loads((tmp_path / "figures" / "s-modes.json").read_text(encoding="utf-8"))
    assert len(spec["vconcat"]) == 2


def tones(facts: dict[str, Any]) -> dict[str, str]:
    return {badge.label: badge.tone for badge in badges(facts)}


def test_badges_of_a_good_certificate() -> None:
    found = {badge.label: badge.value for badge in badges(CERTIFICATE.to_json())}
    assert found == {
        "mode": "precise",
        "fp64 audit": "3.1 \u00d7 10\u207b\u2077",
        "n/d": "29.7 (121,482 / 4,096)",
        "rank": "3,871 of 4,096",
        "overflow": "0",
        "kernels": "triton",
        "store": "9f3b6c1d2e, 02aa71e9cd",
    }
    assert "warn" not in tones(CERTIFICATE.to_json()).values()


def test_badges_warn_of_few_rows_overflow_and_a_poor_audit() -> None:
    assert {label for label, tone in tones(POOR.to_json()).items() if tone == "warn"} == {
        "fp64 audit",
        "n/d",
        "overflow",
    }


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"mode": "fast", "audit_error": 4e-5}, {"mode": "plain", "fp64 audit": "ok"}),
        ({"mode": "exact", "audit_error": 4e-7}, {"mode": "plain", "fp64 audit": "warn"}),
        ({"mode": "precise", "audit_error": 3.1e-6}, {"mode": "plain", "fp64 audit": "warn"}),
        ({"mode": "precise", "audit_error": float("nan")}, {"mode": "plain", "fp64 audit": "warn"}),
        ({"count": 49, "width": 10}, {"n/d": "warn"}),
        ({"count": 50, "width": 10}, {"n/d": "ok"}),
        ({"audit_error": None, "rank": None, "kernel_paths": {}, "store_hashes": {}}, {}),
    ],
)
def test_badge_limits(facts: dict[str, Any], expected: dict[str, str]) -> None:
    assert tones(facts) == expected


def test_certificates_are_found_by_field_and_flattened() -> None:
    whole, text = certificates(real_modes(), "Modes")
    assert (whole.part, text.part) == ("", "text")
    assert ("n over d", "3") in text.facts
    (one,) = certificates(FakeResult(None, table()), "Fake")
    assert ("kernel paths.covariance.name", "triton") in one.facts
    assert certificates(object(), "None") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (2620, "2,620"),
        (-11, "\u221211"),
        (0.41893, "0.4189"),
        (-1.41, "\u22121.41"),
        (12345.678, "12,346"),
        (0.00012346, "0.0001235"),
        (9.9999999, "10"),
        (0.99996, "1"),
        (3.1e-9, "3.1 \u00d7 10\u207b\u2079"),
        (-2e12, "\u22122 \u00d7 10\u00b9\u00b2"),
        (float("nan"), "\u2013"),
        (float("inf"), "\u221e"),
        (float("-inf"), "\u2212\u221e"),
        (np.float32(0.5), "0.5"),
        (np.int64(1234), "1,234"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_spans_share_their_decimals() -> None:
    assert span(-1.41, -1.9, -0.9) == "\u22121.90 to \u22120.90"
    assert span(150.2, 99.0, 201.7) == "99 to 202"
    assert span(0.0, -0.001, 0.5) == "0.00 to 0.50"
    assert span(1e-9, 0.0, 3e-9) == "0 to 3 \u00d7 10\u207b\u2079"


def test_cells() -> None:
    values = [None, "", True, np.bool_(False), 0.25, np.float64("nan"), ["a", 1, None], "text"]
    assert [cell(value) for value in values] == [
        "\u2013",
        "\u2013",
        "yes",
        "no",
        "0.25",
        "\u2013",
        "a, 1, \u2013",
        "text",
    ]


def test_a_long_list_is_cut_in_a_cell() -> None:
    text = cell(list(range(1500)))
    assert text.endswith("18, 19, \u2026 (1,500 in all)")
    assert text.count(",") == 21


def test_prose_is_escaped_and_marked_up() -> None:
    assert inline("**a** `b<c` & **d") == "<strong>a</strong> <code>b&lt;c</code> &amp; **d"
    assert [str(part) for part in paragraphs("one\ntwo\n\n  \nthree")] == ["one\ntwo", "three"]


def test_slugs_are_safe_file_names() -> None:
    assert slug("../../etc/Pass wd") == "etc-pass-wd"
    assert slug("\u03c1\u03bb") == "item"
    assert len(slug("a-" * 100)) <= 60
