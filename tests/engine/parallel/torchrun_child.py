"""What each process of the test's torchrun does: two commands, then reductions of several ranges."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from modegap.cli import main
from modegap.engine.moments import Moments
from modegap.engine.parallel import launched, reduce
from modegap.stores import ActivationStore


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
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
