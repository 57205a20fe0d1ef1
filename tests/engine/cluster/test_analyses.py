"""Analyses on workers equal those of one process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import modegap as mg
from modegap._commands.clustering import load_model_of
from modegap._facade import unsifted_dataset
from modegap.analyses.experiment import run
from modegap.analyses.saved import load_result
from modegap.cli import main
from modegap.engine.cluster import Cluster
from modegap.engine.errors import EngineError


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small capture of the built-in models, and the modes."""
    folder = tmp_path_factory.mktemp("lab")
    data = mg.dataset("lab", size=48)
    model, processor = mg.load("lab:aligned")
    with mg.record(
        model, points=["adapter_output", "llm_final"], store=folder / "modal.zarr", rows="both"
    ) as rec:
        for batch in mg.batches(data, processor, batch_size=24):
            rec(batch)
    decoder, tokenizer = mg.load("lab:text")
    with mg.record(
        decoder, points=["text_embedding", "llm_final"], store=folder / "text.zarr", rows="both"
    ) as rec:
        for batch in mg.batches(data, tokenizer, batch_size=24):
            rec(batch)
    mg.align(folder / "modal.zarr", folder / "text.zarr", top=20).save(folder / "modes.safetensors")
    return folder


def close(found: Any, wanted: Any, path: str = "") -> None:
    """Equal JSON, numbers to 1e-10."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), path
        for key, value in wanted.items():
            close(found[key], value, f"{path}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), path
        for i, value in enumerate(wanted):
            close(found[i], value, f"{path}[{i}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-10, abs=1e-12), path
    else:
        assert found == wanted, path


@pytest.mark.filterwarnings("ignore")
def test_align(cluster: Cluster, lab: Path) -> None:
    one = mg.align(lab / "modal.zarr", lab / "text.zarr", top=20)
    found = mg.align(lab / "modal.zarr", lab / "text.zarr", top=20, cluster=cluster)
    close(found.to_json(), one.to_json())
    assert np.abs(np.abs(found.U.T @ one.U)[:20, :20] - np.eye(20)).max() < 1e-8


@pytest.mark.filterwarnings("ignore")
def test_distance(cluster: Cluster, lab: Path) -> None:
    options: dict[str, Any] = {"bootstrap": 5, "projections": 16, "features": 32, "samples": 20}
    one = mg.distance(lab / "modal.zarr", lab / "text.zarr", **options)
    found = mg.distance(lab / "modal.zarr", lab / "text.zarr", cluster=cluster, **options)
    close(found.to_json(), one.to_json())


def test_probe(cluster: Cluster, lab: Path) -> None:
    options: dict[str, Any] = {"labels": ["digit", "color"], "seeds": (1, 2), "calibration": 2}
    seen: list[tuple[int, int]] = []
    one = mg.probe(lab / "modal.zarr", **options)
    found = mg.probe(lab / "modal.zarr", cluster=cluster, progress=lambda *a: seen.append(a), **options)
    close(found.to_json(), one.to_json())
    assert seen[-1] == (4, 4)


@pytest.mark.filterwarnings("ignore")
def test_replays_by_replicas_of_the_model(cluster: Cluster, lab: Path) -> None:
    model = mg.load("lab:aligned")
    replicas = cluster.replicas(partial(load_model_of, "lab:aligned"))
    store, modes = lab / "modal.zarr", lab / "modes.safetensors"
    subsets = ["top*3", "random*2", "each*5"]
    close(
        mg.ablate(replicas, store, modes, subsets=subsets, n_samples=20).to_json(),
        mg.ablate(model, store, modes, subsets=subsets, n_samples=20).to_json(),
    )
    inside = {"subsets": ["top*2"], "point": "llm_final", "n_samples": 9}
    close(
        mg.ablate(replicas, store, modes, **inside).to_json(),
        mg.ablate(model, store, modes, **inside).to_json(),
    )
    options: dict[str, Any] = {"n_samples": 20, "batch_size": 3}
    close(mg.lipschitz(replicas, store, **options).to_json(), mg.lipschitz(model, store, **options).to_json())
    close(
        mg.gradproj(replicas, store, mg.align(store, lab / "text.zarr", top=20), **options).to_json(),
        mg.gradproj(model, store, modes, **options).to_json(),
    )


def test_directions_split_by_columns(lab: Path) -> None:
    import torch

    from modegap.analyses.lipschitz.gradients import ModeColumns

    modes = load_result(lab / "modes.safetensors")
    d = modes.d
    for source in (modes.U, lab / "modes.safetensors"):
        split = ModeColumns(source, torch.device("cpu"), budget=12 * d * 7)
        blocks = list(split)
        assert [(s.start, s.stop) for s, *_ in blocks][:2] == [(0, 7), (7, 14)]
        assert np.array_equal(np.concatenate([block.numpy() for _, block, _ in blocks], axis=1), modes.U)
        assert all(narrow.equal(block.float()) for _, block, narrow in blocks)


def test_a_model_that_cannot_be_loaded_names_the_worker(cluster: Cluster, lab: Path) -> None:
    replicas = cluster.replicas(partial(load_model_of, str(lab / "nothing")))
    with pytest.raises(EngineError, match=r"worker tcp://.*nothing"):
        mg.lipschitz(replicas, lab / "modal.zarr")
    with pytest.raises(ValueError, match="a cluster replays stores"):
        mg.ablate(replicas, mg.dataset("lab", size=4), lab / "modes.safetensors")


def test_a_command_takes_a_cluster(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes what it writes without; its partial results are gone."""
    said, kept = [], []
    for extra in ([], ["--cluster", "local:1"]):
        out = tmp_path / f"cov{len(extra)}.safetensors"
        assert (
            main(["cov", str(lab / "modal.zarr"), "adapter_output", "--json", "--out", str(out), *extra]) == 0
        )
        said.append(json.loads(capsys.readouterr().out))
        said[-1].pop("out")
        kept.append(load_file(out)["covariance"])
    close(said[1], said[0])
    assert (kept[1] - kept[0]).abs().max() <= 1e-10 * kept[0].abs().max()
    assert not list(tmp_path.glob("*.run"))


@pytest.mark.filterwarnings("ignore")
def test_a_whole_experiment(cluster: Cluster, tmp_path: Path) -> None:
    """Captured here, analysed here and then by workers: the same results."""
    analyses = {
        "align": {"interval": None},
        "probe": {"labels": ["color"], "seeds": [0]},
        "gradproj": {"n_samples": 6},
        "ablate": {"subsets": ["top*2"], "n_samples": 6},
    }
    given = {
        "models": {"aligned": {"model": "lab:aligned", "text": "text"}, "text": {"model": "lab:text"}},
        "datasets": {"lab": {"dataset": "lab", "options": {"size": 60}}},
        "points": ["adapter_output"],
        "text_points": ["text_embedding"],
        "analyses": analyses,
        "out": str(tmp_path / "out"),
    }
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps(given))
    options: dict[str, Any] = {"load": mg.load, "open_data": unsifted_dataset, "report": False}
    run(file, **options)
    names = ("modes-adapter_output.safetensors", "probes.json", "gradproj.json", "ablation.json")
    made = [tmp_path / "out" / "aligned" / name for name in names]
    one = [load_result(path).to_json() for path in made]
    for path in made:
        path.unlink()
    again = run(file, cluster=cluster, **options)
    assert [cell.outcome for cell in again.cells] == ["skipped", "skipped", "done", "done", "done", "done"]
    close([load_result(path).to_json() for path in made], one)


def test_bad_clusters_are_bad_usage(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    modal = str(lab / "modal.zarr")
    assert main(["cov", modal, "adapter_output", "--cluster", "locl:2"]) == 2
    assert "expected local, local:N, a scheduler's address" in capsys.readouterr().err
    assert main(["cov", modal, "adapter_output", "--run-folder", "x"]) == 2
    assert "give --cluster too" in capsys.readouterr().err
    assert main(["cov", modal, "adapter_output", "--cluster", str(tmp_path / "no.yaml")]) == 1
    assert "there is no file" in capsys.readouterr().err
    code = main(["cov", modal, "adapter_output", "--cluster", "local:1", "--checkpoint", str(tmp_path / "c")])
    assert code == 1
    assert "run_folder" in capsys.readouterr().err
