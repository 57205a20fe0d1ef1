"""What each process of the test's torchrun does: two commands, then reductions of several ranges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from modegap.cli import main
from modegap.engine.batch import ActivationBatch
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
    code |= main(["cov", store, "adapter_output", "--out", str(folder / "cov.safetensors"), "--json"])
    with launched() as ranks:
        assert ranks is not None
        opened = ActivationStore.open(store)
        rows = opened.rows("llm_final").n_valid_rows
        found = []
        for options in ({}, {"start": 16}, {"start": 40, "stop": rows - 9, "select": "text"}, {"stop": 20}):
            made = Moments(block_rows=16)
            found.append(reduce(opened, "llm_final", made, ranks=ranks, **options))  # type: ignore[arg-type]
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


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
