"""The report's parts: figures from rows and from Results, badges, numbers and prose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from markupsafe import escape
from numpy.typing import NDArray

from modegap.analyses.align import Modes, align
from modegap.analyses.probe import ProbeResult, probe
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
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from tests.analyses.report_fakes import CERTIFICATE, POOR, FakeResult, modes, probes, table

GOOD = Certificate(mode="precise", kernel_paths={}, count=500, width=4, rank=4, audit_error=1e-7)


def store_of(path: Path, point: str, rows: NDArray[np.float32], **labels: list[str]) -> ActivationStore:
    """A store of pooled rows [samples, d] at one point."""
    ids = [f"s{index}" for index in range(len(rows))]
    plan = StorePlan({point: PointPlan(rows.shape[1], "pooled", dtype="float32")}, ids, labels)
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for index, row in enumerate(rows):
            writer.put(index, {point: SampleRows(pooled=row)})
    return ActivationStore.open(path)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Modes, ProbeResult]:
    """Three modes, the largest modality-specific, from 200 modal and 12 text rows; a probe of two labels."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    modal = np.linalg.qr(rng.standard_normal((200, 3)))[0] * np.sqrt(200) * [3.0, 2.0, 1.0]
    text = np.linalg.qr(rng.standard_normal((12, 3)))[0] * np.sqrt(12) * [0.3, 4.0, 1.0]
    modal[:, 0] += 2.0 * label
    labels = {"easy": [f"c{value}" for value in label], "alone": [f"c{index}" for index in range(200)]}
    first = store_of(folder / "modal.zarr", "adapter_output", modal.astype(np.float32), **labels)
    second = store_of(folder / "text.zarr", "text_embedding", text.astype(np.float32))
    with pytest.warns(UserWarning, match="n/d = 4"):
        modes = align(first, second, interval=None)
    return modes, probe(first, ["adapter_output"], ["easy", "alone"])


def ablation_result() -> Any:
    """What `ablation_rows` reads of an AblationResult: one subset and a random control of three draws."""

    def change(percent: float) -> SimpleNamespace:
        return SimpleNamespace(percent=percent, percent_low=percent - 1, percent_high=percent + 1, p=0.05)

    def draw(percent: float) -> SimpleNamespace:
        return SimpleNamespace(change=change(percent), variance=0.25)

    return SimpleNamespace(
        conditions=(
            SimpleNamespace(name="ms", change=change(-2.0), n_modes=2, variance=0.25, draws=(draw(-2.0),)),
            SimpleNamespace(
                name="random*3",
                change=change(2.0),
                n_modes=2,
                variance=0.25,
                draws=(draw(0.5), draw(1.5), draw(4.0)),
            ),
        )
    )


def rows_of(chart: Any) -> list[dict[str, Any]]:
    (values,) = specification(chart)["datasets"].values()
    return list(values)


def test_rows_of_modes(results: tuple[Modes, ProbeResult]) -> None:
    rows = mode_rows(results[0], "lab")
    assert [row["mode"] for row in rows] == [0, 1, 2]
    assert [row["is_ms"] for row in rows] == [True, False, False]
    assert [row["rho_low"] for row in rows] == [None] * 3  # no interval was asked for
    values = [row["eigenvalue"] for row in rows]
    assert rows[1]["cumulative"] == pytest.approx(sum(values[:2]) / sum(values))
    assert {row["model"] for row in rows} == {"lab"}


def test_spectrum_draws_a_rho_of_zero_at_the_edge_and_keeps_its_value() -> None:
    given = [
        {**row, "rho": rho, "rho_low": low, "rho_high": high}
        for row, rho, low, high in zip(
            modes(1, 4),
            [0.0, 3.0, 0.2, float("nan")],
            [0.0, 2.0, None, None],
            [0.1, 5.0, None, None],
            strict=True,
        )
    ]
    rows = rows_of(mode_spectrum(given, threshold=0.5))
    assert [row["rho"] for row in rows] == [0.0, 3.0, 0.2, None]
    assert [row["rho_drawn"] for row in rows] == [pytest.approx(3e-8), 3.0, 0.2, None]
    assert [row["low_drawn"] for row in rows] == [pytest.approx(3e-8), 2.0, None, None]
    assert [row["high_drawn"] for row in rows] == [0.1, 5.0, None, None]
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


def test_rows_of_probes_leave_out_what_was_not_fitted(results: tuple[Modes, ProbeResult]) -> None:
    (row,) = probe_rows(results[1], "lab")  # every sample is a class of its own under "alone"
    cell = results[1].cells[0]
    assert row == {
        "label": "easy",
        "point": "adapter_output",
        "accuracy": cell.accuracy,
        "std": cell.accuracy_std,
        "low": cell.interval()[0],
        "high": cell.interval()[1],
        "chance": 0.5,
        "model": "lab",
    }


def test_probe_error_bars_stay_within_0_and_1() -> None:
    cells = [{"label": "a", "point": "p", "accuracy": 0.99, "std": 0.05, "chance": 0.5}]
    cells.append({"label": "a", "point": "q", "accuracy": 0.01, "std": None, "chance": 0.5})
    drawn = rows_of(probe_curves(cells))
    assert [(row["low"], row["high"]) for row in drawn] == [(pytest.approx(0.94), 1.0), (0.01, 0.01)]


def test_several_models_get_a_legend() -> None:
    both = [{**row, "model": model} for model in ("plain", "aligned") for row in probes(("digit",))]
    layer = specification(probe_curves(both))["concat"][0]["layer"][1]
    assert layer["encoding"]["color"]["scale"]["domain"] == ["plain", "aligned"]
    assert layer["encoding"]["color"]["legend"]["title"] is None


def test_rows_of_an_ablation() -> None:
    rows = ablation_rows(ablation_result())
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


def test_real_results_make_a_report(results: tuple[Modes, ProbeResult], tmp_path: Path) -> None:
    items = [results[0], Item(results[1], name="probes")]
    html = write_report(Report("T", [], [Section("S", "s", "", items)]), tmp_path).read_text(encoding="utf-8")
    assert {p.stem for p in tmp_path.glob("figures/*.png")} == {"s-modes", "probes"}
    assert {p.stem for p in tmp_path.glob("tables/*.csv")} == {"s-modes", "probes"}
    assert html.count('<li class="of">text</li>') == 2  # under the result and among the certificates
    assert "n/d</span> 4 (12 / 3)" in html
    for warning in results[0].warnings:
        assert html.count(str(escape(warning))) == 1


@dataclass(frozen=True)
class TwoLaws:
    """A result with a certificate for each of two laws."""

    certificate: Certificate
    text_certificate: Certificate


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
    whole, text = certificates(TwoLaws(GOOD, replace(GOOD, count=12, n_over_d=None)), "Modes")
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
