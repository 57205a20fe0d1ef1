"""The LoRA intervention on the lab from nothing, timed: `python -m bench.lab_lora --out bench/results/lab_lora`.

Captures the lab's training images, trains for the background and for the captions, measures, and writes the tables as
CSV with the time that all of it took (goal: five minutes on two cores). Options are those of docs/lora-lab.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import yaml

import modegap as mg
from modegap.analyses.lora import LoraConfig
from modegap.analyses.result import with_options
from modegap.engine.capture import ExtractConfig

from .environment import environment

OPTIONS = Path(__file__).parents[1] / "docs" / "lora-lab.yaml"
POINTS = ("adapter_output", "llm_hidden_3", "llm_final")
GOAL = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables and run.json")
    parser.add_argument("--model", default="lab:plain")
    parser.add_argument("--label", default="background")
    parser.add_argument("--epochs", type=int, help="instead of the options' own")
    parser.add_argument("--limit", type=int, help="only the first so many images")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args()
    config = with_options(LoraConfig(), yaml.safe_load(OPTIONS.read_text(encoding="utf-8")))
    if options.epochs:
        config = replace(config, epochs=options.epochs)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = mg.load(options.model)
        capture = ExtractConfig(options.model, "lab:train", f"{folder}/lab.zarr", POINTS, limit=options.limit)
        store = mg.extract(capture, model=model, data=mg.dataset("lab", split="train"))
        captured = time.perf_counter()
        result = mg.lora(model, store, options.label, f"{folder}/out", config)
    ended = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("comparison", "changes", "training"), result.tables(), strict=True):
        table.to_csv(options.out / f"{name}.csv")
    body = {
        "environment": environment("cpu", options.commit),
        "model": result.model,
        "label": result.label,
        "samples": {"train": result.n_train, "validation": result.n_validation, "test": result.n_test},
        "training_seconds": {
            arm.name: sum(epoch.seconds for epoch in arm.training.epochs)
            for arm in result.arms
            if arm.training is not None
        },
        "capture_seconds": captured - began,
        "seconds": ended - began,
        "goal_seconds": GOAL,
    }
    (options.out / "run.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
