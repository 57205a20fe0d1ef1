"""The shipped experiment `paper`, every cell of it, on small random models and generated data."""

from __future__ import annotations

import dataclasses
import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modegap.analyses.experiment import Experiment, load_experiment, run
from modegap.analyses.study import load_study
from modegap.engine.datasets import ListDataset
from modegap.engine.models import LoadedModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "engine" / "tiny_models.py")))

SAMPLES = 48
# What keeps the work small; everything else is as shipped.
SMALL: dict[str, dict[str, Any]] = {
    "align": {"groups": 6},
    "probe": {"seeds": [0, 1]},
    "distance": {"samples": 40, "bootstrap": 5, "pca": 8, "projections": 8, "features": 16},
    "lipschitz": {"n_samples": 12, "draws": 20},
    "gradproj": {"n_samples": 12, "draws": 20},
    "ablate": {"n_samples": 12, "draws": 20, "subsets": ["ms", "ta", "random*2"]},
    "swap": {"n_samples": 12, "draws": 20},
    "gmi": {"n_samples": 12, "draws": 20, "alternatives": 3, "folds": 2},
    "bound": {"rows": 20},
    "lora": {"test_fraction": 0.35, "epochs": 1, "rank": 2, "draws": 20, "alternatives": 3},
}
EMOTIONS = ("cat", "dog", "red")  # words that the tokenizers of the small models know
FULL_NAMES = {"librispeech": "librispeech:test-clean", "coco": "coco:val2017"}


def small(value: Any) -> Any:
    """Options for decoders of three layers: their hidden state 1 stands for 16."""
    if isinstance(value, dict):
        return {key: small(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [small(one) for one in value]
    return "llm_hidden_1" if value == "llm_hidden_16" else value


def over(options: Any, more: dict[str, Any]) -> Any:
    return [over(one, more) for one in options] if isinstance(options, list) else {**options, **more}


def paper(out: Path) -> Experiment:
    shipped = load_experiment("paper", out=str(out))
    datasets = {
        name: replace(source, analyses={kind: over(given, SMALL[kind]) if kind in ("swap", "lora") else given
                                        for kind, given in source.analyses.items()})
        for name, source in shipped.datasets.items()
    }  # fmt: skip
    analyses = {kind: over(small(given), SMALL.get(kind, {})) for kind, given in shipped.analyses.items()}
    points = {name: small(getattr(shipped, name)) for name in ("points", "text_points")}
    return replace(shipped, datasets=datasets, analyses=analyses, **points)


def load(name: str, **options: Any) -> LoadedModel:
    kind = "audio" if "ultravox" in name or "Qwen" in name else "llava" if "llava" in name else ""
    text = name.startswith(("meta-llama", "lmsys"))
    model = tiny.text("llama") if text else getattr(tiny, kind or "llava")()
    return dataclasses.replace(model, name=name)


def open_data(spec: str, *, limit: int | None = None, **options: Any) -> ListDataset:
    labels = {
        "librispeech": ("speaker", "lexical"),
        "cremad": ("emotion", "speaker", "lexical"),
        "esc50": ("sound",),
        "coco": (
            "lexical",
            "object_category",
            "super_category",
            "object_count",
            "avg_obj_size",
            "spatial_spread",
        ),
    }[spec]
    made = (tiny.image_samples if spec == "coco" else tiny.audio_samples)(SAMPLES)
    samples = [
        replace(
            one,
            labels={
                name: EMOTIONS[i % 3] if name == "emotion" else f"{name} {i * (k + 1) % 3}"
                for k, name in enumerate(labels)
            },
        )
        for i, one in enumerate(made)
    ]
    return ListDataset(samples[:limit], FULL_NAMES.get(spec, spec))


def test_every_cell_of_the_paper_runs(tmp_path: Path) -> None:
    experiment = paper(tmp_path / "out")
    result = run(experiment, load=load, open_data=open_data)
    assert [(cell.cell, cell.message) for cell in result.failed] == []
    assert Counter(cell.outcome for cell in result.cells) == {"done": 126}
    assert sum("from the pass of" in cell.message for cell in result.cells) == 9
    study = load_study(tmp_path / "out" / "cremad" / "ultravox")
    for name in (
        "probes",
        "media_probes",
        "ablation",
        "lipschitz",
        "gradproj",
        "swap",
        "gmi",
        "bound",
        "distances",
    ):
        assert getattr(study, name) is not None, name
    assert study.gmi is not None
    assert {one.label for one in study.gmi.attributes} == {"emotion"}
    assert [(one.label, one.choices) for one in study.lora] == [("emotion", EMOTIONS)]
    assert not load_study(tmp_path / "out" / "cremad" / "qwen2audio").lora
    assert result.report is not None
    page = result.report.read_text()
    for text in ("Beside the published numbers", "qwen2audio on esc50", "Encoders under one text law"):
        assert text in page
    found = json.loads((result.report.parent / "figures" / "published.json").read_text())
    rows = next(iter(found["datasets"].values())) if "datasets" in found else found["data"]["values"]
    assert {row["study"] for row in rows} >= {"ultravox on librispeech", "prismatic-siglip on coco"}
    assert sum("LoRA" in row["quantity"] for row in rows) == 6  # all but lexical: one class here
    again = run(experiment, load=load, open_data=open_data, dry_run=True)
    assert {cell.outcome for cell in again.cells} == {"done"}
