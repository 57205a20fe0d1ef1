"""GQA (Hudson and Manning, CVPR 2019; cs.stanford.edu/people/dorarad/gqa)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from modegap.engine.errors import EngineError

from ..base import Label
from ..labels import Wanted, choose, lexical
from ..table import Row, TableDataset
from .boxes import LABELS, Box, box_labels
from .layout import find, read_json

TEXTS = ("fullAnswer", "answer", "question")


def gqa(
    root: Path,
    *,
    split: str = "val",
    text: Literal["fullAnswer", "answer", "question"] = "fullAnswer",
    labels: Wanted | None = None,
    keep_missing: bool = False,
) -> TableDataset:
    """The questions of a split by image id, then question id.

    Layout: `<split>_balanced_questions.json` (in the root, `questions/` or `questions1.2/`), `images/<id>.jpg`,
    and, optional, `<split>_sceneGraphs.json` (in the root or `sceneGraphs/`). A split is `train`, `val` or
    `testdev`, or a file's whole beginning such as `val_all`.

    Prompt: the question. Text: the full answer, a sentence; with `text="answer"` the word; with
    `text="question"` the question, as the published text baselines take it, under the model's own prompt. Labels:
    `answer`, `question_type` (structural: query, verify, ...), `semantic_type` (object, attribute, ...), `image`
    (keep one on one side of a split), `lexical`; with scene graphs also `object_count`, `avg_obj_size` and
    `spatial_spread` (see `box_labels`).

    Raises:
        EngineError: another layout, another `text`, or files that are not GQA's.
    """
    name = f"gqa:{split}"
    if text not in TEXTS:
        raise EngineError(f"{name}: got text={text!r}; expected one of {', '.join(TEXTS)}")
    stem = split if "_" in split else f"{split}_balanced"
    places = (root, root / "questions", root / "questions1.2")
    expected = f"{stem}_questions.json and images/"
    path = find((place / f"{stem}_questions.json" for place in places), name, root, expected)
    folder = find((root / "images",), name, root, expected)
    graphs = f"{stem.partition('_')[0]}_sceneGraphs.json"
    scenes = next((at for at in (root / graphs, root / "sceneGraphs" / graphs) if at.is_file()), None)
    try:
        rows, columns = _read(read_json(path, name), folder, text)
        if scenes is not None:
            columns |= _scene_columns(read_json(scenes, name), columns["image"])
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"{name}: {path}{f' or {scenes}' if scenes else ''} is not GQA's ({type(error).__name__}: {error}); "
            "download it again"
        ) from error
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "image", rows, chosen, keep_missing=keep_missing)


def _read(questions: Any, folder: Path, text: str) -> tuple[list[Row], dict[str, Sequence[Label]]]:
    found = sorted(questions.items(), key=lambda item: (str(item[1]["imageId"]), item[0]))
    rows: list[Row] = []
    columns: dict[str, list[Label]] = {
        key: [] for key in ("answer", "question_type", "semantic_type", "image")
    }
    for key, one in found:
        image = str(one["imageId"])
        prompt = None if text == "question" else one["question"]
        rows.append(Row(str(key), one[text], folder / f"{image}.jpg", prompt))
        columns["answer"].append(one["answer"])
        columns["question_type"].append(one["types"]["structural"])
        columns["semantic_type"].append(one["types"]["semantic"])
        columns["image"].append(image)
    return rows, {**columns, "lexical": lexical([row.text for row in rows])[0]}


def _scene_columns(scenes: Mapping[str, Any], images: Sequence[Label]) -> dict[str, Sequence[Label]]:
    """Labels by question; the cuts are over the images asked about, each once."""
    boxes: dict[str, list[Box]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for image in dict.fromkeys(map(str, images)):
        if image in scenes:
            scene = scenes[image]
            sizes[image] = (scene["width"], scene["height"])
            boxes[image] = [(box["x"], box["y"], box["w"], box["h"]) for box in scene["objects"].values()]
    found = box_labels(boxes, sizes)
    return {
        label: [found[str(image)][label] if str(image) in found else None for image in images]
        for label in LABELS
    }
