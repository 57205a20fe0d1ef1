"""The command line: exit codes, one-line errors that name the remedy, JSON, YAML configs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import keyword
import typing
from pathlib import Path

import numpy as np
import pytest

from modegap.cli import COMMANDS, main
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

Out = pytest.CaptureFixture[str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "s.zarr", width=16, samples=40)


def make_store(path: Path, width: int, samples: int, points: tuple[str, ...] = ("adapter_output",)) -> Path:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, samples)
    plan = StorePlan(
        points={name: PointPlan(width, "both", lengths, stream="s") for name in points},
        sample_ids=[f"s{i}" for i in range(samples)],
        labels={"kind": [("a", "b")[i % 2] for i in range(samples)], "one": ["x"] * samples},
    )
    made = ActivationStore.create(path, plan)
    with made.writer() as writer:
        for sample in writer.todo.tolist():
            rows = rng.standard_normal((int(lengths[sample]), width)).astype(np.float32)
            writer.put(sample, {name: SampleRows(rows, rows.mean(0)) for name in points})
    return path


def fails(capsys: Out, *args: str) -> tuple[int, str]:
    code = main(args)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: Out) -> None:
    assert main([command, "--help"]) == 0
    assert f"modegap {command}" in capsys.readouterr().out


def test_overview_and_version(capsys: Out) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert main(["--version"]) == 0
    assert main([]) == 2


def test_bad_usage_is_two(capsys: Out, store: Path) -> None:
    code, error = fails(capsys, "verfy", str(store))
    assert code == 2
    assert "did you mean 'verify'" in error
    assert fails(capsys, "verify")[0] == 2
    assert fails(capsys, "verify", str(store), "--fraction", "many")[0] == 2
    assert fails(capsys, "verify", str(store), "--no-such-option", "1")[0] == 2
    code, error = fails(capsys, "demo", "--samples", "3")
    assert code == 2
    assert "expected at least 60" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_value_is_one_line_that_says_what_is_expected(command: str, capsys: Out) -> None:
    module = importlib.import_module(f"modegap._commands.{command}{'_' * keyword.iskeyword(command)}")
    hints = {name: hint for one in module.CONFIGS for name, hint in typing.get_type_hints(one).items()}
    needed = [
        f.name
        for one in module.CONFIGS
        for f in dataclasses.fields(one)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    given = [word for name in needed for word in (f"--{name}", "x")]
    kinds: dict[object, str] = {}  # an option of each kind of value
    for name, hint in hints.items():
        parts = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
        kind = "choice" if "Literal" in str(hint) else parts[0]
        if name not in needed and (kind == "choice" or (len(parts) == 1 and kind in (int, float, bool))):
            kinds.setdefault(kind, name)
    for name in kinds.values():
        code, error = fails(capsys, command, *given, f"--{name.replace('_', '-')}", "no-such-value")
        assert code == 2, name
        assert error.startswith(f"modegap: error: {name}: got 'no-such-value', expected "), name
        assert error.endswith(f"; see modegap {command} --help\n")
        assert error.count("\n") == 1
    assert "choice" in kinds or command not in {"plan", "extract", "cov", "align", "probe", "lora"}


def test_options_that_do_not_fit_are_one_line(capsys: Out, store: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("mode: presise\n")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("moed: exact\n")
    for words, message in {
        (
            "plan",
            "m",
            "d",
            "--pool",
            "modalty",
        ): "pool: got 'modalty', expected all or modality; did you mean 'modality'?",
        ("cov", "s", "p", "--run-foldr", "x"): "no option --run-foldr; did you mean '--run-folder'?",
        ("cov", "s", "p", "more"): "unexpected argument 'more'",
        ("cov", "s"): "the following arguments are required: point",
        (
            "cov",
            "s",
            "p",
            "--config",
            str(wrong),
        ): "mode: got 'presise', expected precise, exact or fast; did you mean",
        ("cov", "s", "p", "--config", str(unknown)): "no option 'moed'; did you mean 'mode'?",
        ("cov", "--store", "s"): "the following arguments are required: point",
        ("cov", "--point"): "point: got nothing after --point",
        ("cov", "--store", "s", "p", "--mod", "exact"): "no option --mod; did you mean '--mode'?",
    }.items():
        code, error = fails(capsys, *words)
        assert code == 2, words
        assert error.startswith(f"modegap: error: {message}"), error
        assert error.count("\n") == 1


def test_torchrun_is_refused_where_each_process_would_do_all(
    capsys: Out, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "probes.json"
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    words = ["probe", str(store), "--out", str(out)]
    assert main(words) == 2
    assert "each would do all of probe" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 2
    assert capsys.readouterr().err == "", "the first process says it"
    assert not out.exists()


def test_positional_arguments_have_names(capsys: Out, store: Path) -> None:
    wanted = run_json(capsys, "cov", str(store), "adapter_output")
    for words in (
        ("--store", str(store), "--point", "adapter_output"),
        ("--point=adapter_output", str(store)),
        ("--mode", "precise", "adapter_output", "--store", str(store)),
    ):
        assert run_json(capsys, "cov", *words) == wanted
    assert main(["cov", "--store", "s", "--help"]) == 0


def run_json(capsys: Out, *words: str) -> object:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_missing_store_names_the_remedy(capsys: Out, tmp_path: Path) -> None:
    for command in ("info", "verify", "probe"):
        code, error = fails(capsys, command, str(tmp_path / "none.zarr"))
        assert code == 1
        assert error.count("\n") == 1
        assert "none.zarr" in error


def test_wrong_point_suggests_the_nearest(capsys: Out, store: Path) -> None:
    code, error = fails(capsys, "cov", str(store), "adapter_ouput")
    assert code == 1
    assert "adapter_output" in error


def test_info_cov_and_json(capsys: Out, store: Path, tmp_path: Path) -> None:
    assert main(["info", str(store)]) == 0
    assert "adapter_output" in capsys.readouterr().out
    out = tmp_path / "cov.safetensors"
    assert main(["cov", str(store), "adapter_output", "--json", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = ActivationStore.open(store).rows("adapter_output")
    assert found["rows"] == rows.n_valid_rows
    assert found["certificate"]["mode"] == "precise"
    from safetensors.numpy import load_file

    x = rows.read(0, rows.n_valid_rows).astype(np.float64)
    np.testing.assert_allclose(load_file(out)["covariance"], np.cov(x.T), rtol=0, atol=1e-5)


def test_yaml_config_and_flags_mean_the_same(capsys: Out, store: Path, tmp_path: Path) -> None:
    config = tmp_path / "cov.yaml"
    config.write_text(f"store: {store}\npoint: adapter_output\nrows: pooled\nmode: exact\n")
    assert main(["cov", "--config", str(config), "--json"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert main(["cov", str(store), "adapter_output", "--rows=pooled", "--mode", "exact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_file
    assert by_file["rows"] == 40


def test_align_probe_report_chain(capsys: Out, tmp_path: Path) -> None:
    study = tmp_path / "mine"
    study.mkdir()
    modal = make_store(study / "modal.zarr", 16, 60, ("adapter_output", "llm_final"))
    text = make_store(tmp_path / "text.zarr", 16, 60, ("text_embedding", "llm_final"))
    assert main(["align", str(modal), str(text), "--out", str(study / "modes.safetensors"), "--quiet"]) == 0
    assert (
        main(["probe", str(modal), "--labels", "kind,one", "--out", str(study / "probes.json"), "--json"])
        == 0
    )
    out = capsys.readouterr().out
    cells = json.loads(out[out.index("{") :])["cells"]
    assert {cell["label"] for cell in cells if cell["message"]} == {"one"}
    assert main(["report", str(tmp_path / "report"), "--studies", str(study), "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"])
    assert page.is_file()
    assert "mine" in page.read_text()


def test_widths_that_differ_are_an_error(capsys: Out, store: Path, tmp_path: Path) -> None:
    text = make_store(tmp_path / "t.zarr", 12, 10, ("text_embedding",))
    code, error = fails(capsys, "align", str(store), str(text))
    assert code == 1
    assert "16" in error
    assert "12" in error


def test_damage_is_found_named_and_repaired(capsys: Out, store: Path) -> None:
    chunk = next((store / "points" / "adapter_output" / "rows" / "c").rglob("0"))
    chunk = chunk / "0" if chunk.is_dir() else chunk
    raw = bytearray(chunk.read_bytes())
    raw[100] ^= 1
    chunk.write_bytes(raw)
    assert main(["verify", str(store), "--quiet"]) == 1
    assert "adapter_output" in capsys.readouterr().out
    code, error = fails(capsys, "cov", str(store), "adapter_output", "--quiet")
    assert code == 1
    assert "repair" in error
    assert main(["repair", str(store), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete_samples"] < 40
    assert main(["verify", str(store), "--quiet"]) == 0


def test_unknown_model_and_data(capsys: Out, tmp_path: Path) -> None:
    code, error = fails(capsys, "inspect", str(tmp_path / "no-model"))
    assert code == 1
    assert error.count("\n") == 1
    code, error = fails(capsys, "inspect", "lab:plane")
    assert code == 1
    assert "plain" in error
    out = str(tmp_path / "x.zarr")
    code, error = fails(
        capsys, "extract", "lab:plain", str(tmp_path / "no-data"), out, "--points", "adapter_output"
    )
    assert code == 1
    assert not Path(out).exists()
