"""Two processes of torchrun on the host (gloo) leave what one leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from modegap._facade import load, unsifted_dataset
from modegap.cli import main
from modegap.engine.capture import ExtractConfig, extract, read_skipped
from modegap.engine.errors import EngineError
from modegap.engine.moments import Moments, RowSample
from modegap.engine.parallel import Ranks, launched, rank_of_env
from modegap.engine.parallel.exchange import broadcast, receive
from modegap.engine.parallel.ranks import speaking
from modegap.engine.reduce import reduce
from modegap.stores import ActivationStore, verify

sys.path.insert(0, str(Path(__file__).parent))

from torchrun_child import few

ROOT = Path(__file__).resolve().parents[3]
CHILD = Path(__file__).with_name("torchrun_child.py")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("torchrun")
    _pictures(folder / "pictures")
    _begin(folder)
    # an abort says where; each process's own words are kept, since torchrun tells of them only that they ended
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
               "--standalone", "--tee", "3", "--log-dir", str(folder / "logs"), str(CHILD), str(folder)]  # fmt: skip
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if done.returncode:
        logs = sorted((folder / "logs").rglob("std*.log"))
        said = [f"{file.relative_to(folder)}:\n{file.read_text(errors='replace')}" for file in logs]
        pytest.fail("\n".join([f"torchrun ended with {done.returncode}", *said, "torchrun:", done.stderr]))
    return folder, done.stdout


def _pictures(folder: Path) -> None:
    """Nine of them, two of which are cut short."""
    folder.mkdir()
    lines = ["file,text"]
    for i in range(9):
        values = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
        lines.append(f"{i}.png,picture {i}")
    for i in (0, 5):
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:40])
    (folder / "metadata.csv").write_text("\n".join(lines))


def _leaving_out(store: Path) -> ExtractConfig:
    points = ("adapter_output",)
    return ExtractConfig(
        "lab:aligned", "pictures", str(store), points, batch_size=2, chunk_bytes=512, skip_bad=True
    )


def _begin(folder: Path) -> None:
    """A capture by one process that leaves samples out, as if it had been killed before its last chunk."""
    store = folder / "begun.zarr"
    assert main(few(folder, store.name)) == 0
    records = store / "_commit/points/adapter_output/rows"
    max(records.iterdir(), key=lambda record: int(record.stem)).unlink()
    assert 0 < ActivationStore.open(store).n_complete < 7


def test_a_shared_capture_is_the_capture(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = ran
    points = ("adapter_output", "llm_final")
    config = ExtractConfig(
        "lab:aligned", "lab", str(tmp_path / "one.zarr"), points, batch_size=8, chunk_bytes=8192, limit=60
    )
    one = extract(config, model=load("lab:aligned"), data=unsifted_dataset("lab"))
    both = ActivationStore.open(folder / "both.zarr")
    assert both.n_complete == 60
    assert verify(both).ok
    assert both.plan_hash == one.plan_hash
    assert both.content_hash() == one.content_hash()
    assert len(both.parts(2)) == 2  # so each process wrote


def test_what_cannot_be_decoded_is_left_out_once(ran: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = ran
    data = unsifted_dataset(folder / "pictures", keep_missing=True)
    one = extract(_leaving_out(tmp_path / "one.zarr"), model=load("lab:aligned"), data=data)
    # one process began the second
    for name in ("few.zarr", "begun.zarr"):
        both = ActivationStore.open(folder / name)
        assert both.n_complete == 7
        assert both.content_hash() == one.content_hash()
        assert [entry["sample"] for entry in read_skipped(both.path)] == ["0.png", "5.png"]


def test_processes_set_a_capture_up_at_the_same_time(ran: tuple[Path, str]) -> None:
    folder, _ = ran  # where the child's processes have waited for each other
    assert all(
        (folder / f"{name} {rank}").exists() for name in ("tokenise", "first batch") for rank in (0, 1)
    )
    assert ActivationStore.open(folder / "steps.zarr").n_complete == 12


def test_a_shared_covariance_is_the_covariance(ran: tuple[Path, str]) -> None:
    folder, said = ran
    store = ActivationStore.open(folder / "both.zarr")
    one = reduce(store, "adapter_output", Moments())
    kept = load_file(folder / "cov.safetensors")
    assert (kept["covariance"] - one.covariance).abs().max() <= 1e-10 * one.covariance.abs().max()
    assert said.count('"total variance"') == 1, "only the first process prints"


def test_every_process_has_the_same_bits(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    store = ActivationStore.open(folder / "both.zarr")
    rows = store.rows("llm_final").n_valid_rows
    ours, theirs = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    facts: list[list[Any]] = json.loads((folder / "rank1.json").read_text())
    kinds: list[tuple[dict[str, Any], Moments]] = [
        (options, Moments(block_rows=16))
        for options in ({}, {"start": 16}, {"start": 40, "stop": rows - 9, "select": "text"}, {"stop": 20})
    ]
    for i, (options, made) in enumerate([*kinds, ({}, Moments("exact", block_rows=16))]):
        one = reduce(store, "llm_final", made, **options)
        assert torch.equal(ours[i], theirs[i])
        assert (ours[i] - one.covariance).abs().max() <= 1e-10 * one.covariance.abs().max()
        assert facts[i] == [one.count, dict(one.certificate.store_hashes)]
    assert len(ours) == len(kinds) + 1


def test_an_error_in_one_process_reaches_all(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    rows = ActivationStore.open(folder / "both.zarr").rows("llm_final").n_valid_rows
    ours, theirs = (json.loads((folder / f"errors{rank}.json").read_text()) for rank in (0, 1))
    assert ours == theirs
    assert ours["first block"] == "ValuesError: row 3"
    assert ours["later"] == "ValuesError: row 17"
    assert ours["last"] == f"ValuesError: row {rows - 1}"
    assert ours["merge"] == "EngineError: LocalError: no merge"  # a class of a function cannot be sent
    assert ours["here only"].startswith("ValueError: start, stop")
    assert ours["one row"].startswith("EngineError: llm_final: 1 rows")


def test_a_process_that_ends_is_said_in_one_line(tmp_path: Path) -> None:
    """Not by gloo's traceback, below which nobody finds what the other one said."""
    group = f"'gloo', init_method='file://{tmp_path}/store', world_size=2"
    child = f"import os, torch.distributed as d; d.init_process_group({group}, rank=1); os._exit(0)"
    with subprocess.Popen([sys.executable, "-c", child]) as other:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", world_size=2, rank=0)
        try:
            ranks = Ranks(0, 2, 0)
            other.wait(60)
            for waiting in (ranks.barrier, lambda: receive(1, ranks), lambda: broadcast({}, 0, ranks)):
                with pytest.raises(EngineError, match="another process of this run ended"):
                    waiting()
        finally:
            dist.destroy_process_group()


def test_a_reduction_without_blocks(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    store = ActivationStore.open(folder / "both.zarr")
    rows = store.rows("llm_final").n_valid_rows
    one = reduce(store, "llm_final", RowSample(torch.tensor([1, rows // 2, rows - 1]), 32))
    for rank in (0, 1):
        row, values = torch.load(folder / f"rows{rank}.pt")
        assert torch.equal(row, one.row)
        assert torch.equal(values, one.values)
        parts = json.loads((folder / f"parts{rank}.json").read_text())
        assert parts == ["settle", "rows", "exchange", "finalize"]


def test_the_group_ends_before_the_interpreter(ran: tuple[Path, str]) -> None:
    """A thread of the group that lets go of a tensor while the interpreter ends aborts the process."""
    folder, _ = ran
    for rank in (0, 1):
        names = json.loads((folder / f"threads{rank}.json").read_text())
        assert names
        assert not [name for name in names if "gloo" in name]


def test_a_single_process_is_nobodys_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    with launched() as ranks:
        assert ranks is None
    assert rank_of_env() == 0
    for name, value in {"RANK": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert rank_of_env() == 0  # alone: nothing to share
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert rank_of_env() == 3


def test_a_full_gpu_is_not_blamed_on_another_process() -> None:
    said = r"another process .* ended or cannot be reached.*\(Connection closed\)"
    with pytest.raises(EngineError, match=said), speaking():
        raise RuntimeError("Connection closed\nby peer")
    with pytest.raises(torch.OutOfMemoryError), speaking():
        raise torch.OutOfMemoryError("CUDA out of memory")
