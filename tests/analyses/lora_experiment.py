"""An experiment with a LoRA intervention on a small real architecture; as a script it runs one."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from modegap.analyses.experiment import ExperimentResult, run
from modegap.engine.datasets import ListDataset
from modegap.engine.models import LoadedModel

_MATERIAL = Path(__file__).parents[1] / "engine" / "lora" / "lora_material.py"
made = SimpleNamespace(**runpy.run_path(str(_MATERIAL)))
LORA: dict[str, Any] = {
    "label": "kind",
    "labels": ["kind"],
    "question": made.QUESTION,
    "epochs": 2,
    "lr": 1e-2,
    "rank": 2,
    "batch_size": 16,
    "draws": 20,
    "alternatives": 3,
    "max_new_tokens": 2,
    "checkpointing": False,
    "control": False,
}


def write(folder: Path, count: int = 60, out: str = "out", **lora: Any) -> Path:
    """The experiment's file, its results beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": "tiny",
        "models": {"llava": {"model": "tiny", "text": "text"}, "text": {"model": "tiny-text"}},
        "datasets": {"photos": {"dataset": "photos", "options": {"count": count}}},
        "points": ["adapter_output"],
        "text_points": ["text_embedding"],
        "capture": {"batch_size": 16, "rows": "both", "store_dtype": "float32"},
        "analyses": {"lora": {**LORA, **lora}},
        "out": str(folder / out),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def load(name: str, **options: Any) -> LoadedModel:
    return made.tiny.text("llama") if name == "tiny-text" else made.tiny.llava()


def open_data(name: str, *, count: int, keep_missing: bool = False) -> ListDataset:
    return ListDataset(made.samples("llava", count), name)


def go(path: Path, **options: Any) -> ExperimentResult:
    return run(path, **{"load": load, "open_data": open_data, **options})


if __name__ == "__main__":
    sys.exit(go(Path(sys.argv[1]), report=False).exit_code)
