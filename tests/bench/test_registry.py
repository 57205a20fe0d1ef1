"""The registry on the host at a tiny width: gates, records, files, and the command."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path

import pytest

from bench import ceilings, run
from bench.harness import Case, results
from bench.registry import FAMILIES, Family, select
from modegap._commands import bench as command
from modegap.cli import main

TOP = {"copy": 1e10, "fp32": 1e11, "fp64": 5e10}
WIDTH = 64


@pytest.mark.parametrize("family", select("cpu"), ids=lambda family: family.name)
def test_every_host_provider_passes_its_gate(family: Family) -> None:
    cases = list(family.cases(WIDTH))
    assert cases
    for case in cases:
        assert next(iter(case.providers)).startswith("modegap")
        assert case.floor_ms(TOP) > 0
        assert not case.inaccurate - case.providers.keys()
        for name, calls in case.providers.items():
            assert case.error(calls[0]()) <= case.tolerance or name in case.inaccurate, (case.name, name)


def test_the_gate_tells_a_biased_covariance() -> None:
    case = next(iter(select("cpu", ["covariance"])[0].cases(WIDTH)))
    right = case.providers["modegap precise"][0]()
    assert case.error(right) <= case.tolerance < case.error(right * (1 + 1e-5))  # type: ignore[operator]


def test_gpu_families_exist_where_triton_does() -> None:
    pytest.importorskip("triton")
    for family in FAMILIES:
        if family.device == "cuda":
            assert callable(getattr(importlib.import_module(f"bench.{family.module}"), family.factory))


def broken() -> object:
    raise RuntimeError("no such driver")


def fake(**options: object) -> Case:
    providers = {"modegap": [lambda: 1.0], "off": [lambda: 1.5], "known": [lambda: 1.5], "broken": [broken],
                 "overflows": [lambda: math.inf]}  # fmt: skip
    return Case("fake", 8, providers, lambda got: abs(got - 1.0), 0.1, bytes=1e3, repeats=3,
                inaccurate=frozenset({"known"}), missing={"absent": "not installed"}, **options)  # fmt: skip


def test_failures_are_reported_and_not_timed() -> None:
    found = {record["provider"]: record for record in results(fake(), TOP, "cpu")}
    assert found["modegap"]["accurate"]
    assert found["modegap"]["gb_per_s"] > 0
    assert not found["known"]["accurate"]
    assert "ms" in found["known"]
    assert found["off"]["failed"] == "error 0.5 above 0.1"
    assert found["broken"]["failed"] == "RuntimeError: no such driver"
    assert found["absent"]["missing"] == "not installed"
    assert all("ms" not in found[name] for name in ("off", "broken", "absent", "overflows"))
    assert found["overflows"]["failed"] == "error inf above 0.1"
    json.dumps(list(found.values()), allow_nan=False)


def test_our_own_failure_is_told() -> None:
    case = fake()
    case.providers = {"modegap": case.providers["off"], "other": case.providers["modegap"]}
    report = {"results": results(case, TOP, "cpu")}
    assert run.own_failures(report) == ["fake at 8: modegap: error 0.5 above 0.1"]


def test_selection() -> None:
    with pytest.raises(ValueError, match=r"got nothing, expected some of covariance"):
        select("cpu", ["nothing"])
    (family,) = select("cpu", ["staging"])
    assert [list(case.providers) for case in family.cases(WIDTH, ["dask"])] == [["modegap"]] * 2


def test_host_ceilings_are_plausible() -> None:
    top = ceilings._host(n=256)
    assert set(top) == {"copy", "fp32", "fp64"}
    assert 1e8 < top["copy"] < 1e13
    assert 1e7 < top["fp64"] <= 2 * top["fp32"]


def test_command_writes_json_and_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ceilings", lambda device: TOP)
    flags = ["--case", "staging", "--widths", "64,72", "--out", str(tmp_path), "--json"]
    assert main(["bench", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "cpu.json").read_text())
    assert told == saved
    assert {record["width"] for record in saved["results"]} == {64, 72}
    assert {"cpu", "threads", "torch", "commit"} <= saved["environment"].keys()
    with (tmp_path / "cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ms"]) for row in rows] == [record["ms"] for record in saved["results"]]
    assert rows[0]["torch"] == saved["environment"]["torch"]
    assert main(["bench", "--case", "staging", "--widths", "64", "--quiet"]) == 0
    assert "shift and cast" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--case", "nothing"], ["--widths", "63"], ["--device", "cuda"]])
def test_bad_options_are_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("modegap: error: ")
    assert error.count("\n") == 1


def test_without_a_checkout_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "__file__", str(tmp_path / "a" / "b" / "c" / "bench.py"))
    assert main(["bench"]) == 1
    error = capsys.readouterr().err
    assert "clone the repository" in error
    assert error.count("\n") == 1
