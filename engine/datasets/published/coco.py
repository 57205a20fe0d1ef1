"""MS-COCO 2017 (Lin et al., ECCV 2014; cocodataset.org)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError

from ..base import Label
from ..labels import Wanted, choose, lexical
from ..table import Row, TableDataset
from .boxes import LABELS, Box, box_labels
from .layout import find, read_json


def coco(
    root: Path, *, split: str = "val2017", labels: Wanted | None = None, keep_missing: bool = False
) -> TableDataset:
    """The images of a split by image id.

    Layout: `<split>/` (or `images/<split>/`) with the images, `annotations/captions_<split>.json` and
    `annotations/instances_<split>.json` under the root.

    Text: of an image's captions the one with the lowest id. Labels: `object_category`, the category whose
    instances cover the most pixels (ties: the lower category id; the published probes do not say their rule), its
    `super_category`, `object_count`, `avg_obj_size`, `spatial_spread` (see `box_labels`) and `lexical`. Crowd
    annotations count for none of them; an image without instances has no object labels.

    Raises:
        EngineError: another layout, or annotation files that are not COCO's.
    """
    name = f"coco:{split}"
    expected = f"{split}/, annotations/instances_{split}.json and annotations/captions_{split}.json"
    folder = find((root / split, root / "images" / split), name, root, expected)
    paths = {
        kind: find((root / "annotations" / f"{kind}_{split}.json",), name, root, expected)
        for kind in ("captions", "instances")
    }
    try:
        return _read(name, folder, paths, labels, keep_missing)
    except (KeyError, TypeError, IndexError) as error:
        raise EngineError(
            f"{name}: {' or '.join(map(str, paths.values()))} is not a COCO annotation file "
            f"({type(error).__name__}: {error}); download annotations_trainval2017.zip again"
        ) from error


def _read(
    name: str, folder: Path, paths: Mapping[str, Path], labels: Wanted | None, keep_missing: bool
) -> TableDataset:
    captions = _first_captions(read_json(paths["captions"], name)["annotations"])
    instances = read_json(paths["instances"], name)
    images = sorted(instances["images"], key=lambda image: int(image["id"]))
    ids = [str(image["id"]) for image in images]
    rows = [
        Row(key, captions.get(key, ""), folder / image["file_name"])
        for key, image in zip(ids, images, strict=True)
    ]
    columns = _object_columns(ids, images, instances)
    columns["lexical"] = lexical([row.text for row in rows])[0]
    chosen = choose(columns, labels, name, infer=False)
    return TableDataset(name, "image", rows, chosen, keep_missing=keep_missing)


def _first_captions(annotations: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in sorted(annotations, key=lambda one: int(one["id"])):
        found.setdefault(str(one["image_id"]), " ".join(one["caption"].split()))
    return found


def _object_columns(
    ids: Sequence[str], images: Iterable[Mapping[str, Any]], instances: Mapping[str, Any]
) -> dict[str, Sequence[Label]]:
    categories = {one["id"]: (one["name"], one["supercategory"]) for one in instances["categories"]}
    boxes: dict[str, list[Box]] = defaultdict(list)
    areas: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for one in instances["annotations"]:
        if not one.get("iscrowd", 0):
            key = str(one["image_id"])
            boxes[key].append(tuple(one["bbox"]))
            areas[key][one["category_id"]] += one["area"]
    sizes = {str(image["id"]): (image["width"], image["height"]) for image in images}
    found = box_labels(boxes, sizes)
    columns: dict[str, list[Label]] = {"object_category": [], "super_category": []}
    for key in ids:
        area = areas.get(key, {})
        largest = min(area, key=lambda category: (-area[category], category), default=None)
        name, above = (None, None) if largest is None else categories[largest]
        columns["object_category"].append(name)
        columns["super_category"].append(above)
    return {**columns, **{label: [found[key][label] for key in ids] for label in LABELS}}
