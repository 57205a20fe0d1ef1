"""What each process of the test's torchrun does: three commands, then a capture step by step and many reductions."""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap._facade import load, unsifted_dataset
from modegap.cli import main
from modegap.engine.batch import ActivationBatch
from modegap.engine.capture import ExtractConfig, extract, extraction
from modegap.engine.capture.job import Job
from modegap.engine.errors import ValuesError
from modegap.engine.moments import Moments, RowSample
from modegap.engine.parallel import Ranks, launched, reduce
from modegap.engine.parallel.exchange import broadcast
from modegap.stores import ActivationStore


class Broken(Moments):
    """Meets a row that it cannot take."""

    row = -1

    def update(self, batch: ActivationBatch) -> None:
        if batch.start <= self.row < batch.end:
            raise ValuesError(f"row {self.row}")
        super().update(batch)


class Starting(Moments):
    """Takes no shift from another process."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("this process waited for a shift")


class Refusing(Broken):
    """And says so in a way that cannot be sent."""

    def merge(self, other: Moments) -> Moments:
        class LocalError(ValueError):
            pass

        raise LocalError("no merge")


def said(store: ActivationStore, ranks: Ranks, made: Moments, row: int, **options: int) -> str:
    """What a reduction that goes wrong raises in this process."""
    Broken.row = row
    try:
        reduce(store, "llm_final", made, ranks=ranks, **options)  # type: ignore[arg-type]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def step_by_step(folder: Path, ranks: Ranks) -> None:
    """A capture whose processes go on from each step of its set-up only when the other has come there too."""

    def meet(name: str) -> None:
        (folder / f"{name} {ranks.rank}").touch()
        end = time.monotonic() + 60
        while not (folder / f"{name} {1 - ranks.rank}").exists():
            if time.monotonic() > end:
                raise TimeoutError(f"process {ranks.rank} is at {name}, and the other one does not come")
            time.sleep(0.01)

    class Stepwise(Job):
        def first_batch(self):  # type: ignore[no-untyped-def]
            meet("first batch")
            return super().first_batch()

    def progress(phase: str, done: int, total: int) -> None:
        if phase == "tokenise" and done == 1:
            meet(phase)

    config = ExtractConfig("lab:aligned", "lab", str(folder / "steps.zarr"), ("adapter_output",), limit=12)
    plain, extraction.Job = extraction.Job, Stepwise
    try:
        extract(
            config, model=load("lab:aligned"), data=unsifted_dataset("lab"), progress=progress, ranks=ranks
        )
    finally:
        extraction.Job = plain


def few(folder: Path, name: str) -> list[str]:
    """The command that captures pictures of which some cannot be decoded."""
    options = ["--points", "adapter_output", "--batch-size", "2", "--chunk-bytes", "512", "--skip-bad"]
    return ["extract", "lab:aligned", str(folder / "pictures"), str(folder / name), *options]


def run(folder: Path) -> int:
    store = str(folder / "both.zarr")
    capture = [
        "--points",
        "adapter_output,llm_final",
        "--batch-size",
        "8",
        "--limit",
        "60",
        "--chunk-bytes",
        "8192",
    ]
    code = main(["extract", "lab:aligned", "lab", store, *capture, "--json"])
    for name in ("few.zarr", "begun.zarr"):
        code |= main([*few(folder, name), "--json"])
    code |= main(["cov", store, "adapter_output", "--out", str(folder / "cov.safetensors"), "--json"])
    with launched() as ranks:
        assert ranks is not None
        step_by_step(folder, ranks)
        opened = ActivationStore.open(store)
        rows = opened.rows("llm_final").n_valid_rows
        found = []
        for options in ({}, {"start": 16}, {"start": 40, "stop": rows - 9, "select": "text"}, {"stop": 20}):
            made = Moments(block_rows=16)
            found.append(reduce(opened, "llm_final", made, ranks=ranks, **options))  # type: ignore[arg-type]
        found.append(reduce(opened, "llm_final", Starting("exact", block_rows=16), ranks=ranks))
        torch.save([one.covariance for one in found], folder / f"rank{ranks.rank}.pt")
        facts = [(one.count, one.certificate.to_json()["store_hashes"]) for one in found]
        (folder / f"rank{ranks.rank}.json").write_text(json.dumps(facts))
        errors = {
            "first block": said(opened, ranks, Broken(block_rows=16), 3),
            "later": said(opened, ranks, Broken(block_rows=16), 17, stop=rows // 2),
            "last": said(opened, ranks, Broken(block_rows=16), rows - 1),
            "merge": said(opened, ranks, Refusing(block_rows=16), -1),
            "here only": said(opened, ranks, Moments(), -1, start=rows * 2 * ranks.rank),
            "one row": said(opened, ranks, Moments(), -1, stop=1),
        }
        (folder / f"errors{ranks.rank}.json").write_text(json.dumps(errors))
        parts: list[str] = []
        wanted = torch.tensor([1, rows // 2, rows - 1])
        kept = reduce(opened, "llm_final", RowSample(wanted, 32), ranks=ranks, ended=parts.append)
        torch.save((kept.row, kept.values), folder / f"rows{ranks.rank}.pt")
        # matrices travel apart from the words, as do arrays of numpy
        large = (
            {"x": torch.arange(20_000.0).reshape(2, -1)[:, ::2], "y": np.arange(9_000)[::-1]},
            torch.empty(0),
        )
        there = broadcast(large if ranks.first else None, 0, ranks)
        assert all(
            torch.equal(
                torch.as_tensor(a.copy() if isinstance(a, np.ndarray) else a),
                torch.as_tensor(b.copy() if isinstance(b, np.ndarray) else b),
            )
            for a, b in zip((*large[0].values(), large[1]), (*there[0].values(), there[1]), strict=True)
        )
        (folder / f"parts{ranks.rank}.json").write_text(json.dumps(parts))
    return code


def threads_left(folder: Path) -> None:
    """Notes the process's threads by name, those of libraries too."""
    names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads{os.environ['RANK']}.json").write_text(json.dumps(names))


if __name__ == "__main__":
    # a process that waits for ever ends before the test's patience does, and says where it was: with torchrun
    # killed by the test nobody else would end it
    faulthandler.dump_traceback_later(110, exit=True)
    # called after what `launched` registers later
    atexit.register(threads_left, Path(sys.argv[1]))
    sys.exit(run(Path(sys.argv[1])))
