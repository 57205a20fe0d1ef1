"""Labels of an image that its captions do not name: how many objects, how large, how spread out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..base import Label

# (x, y, width, height) in pixels, x and y of the upper left corner
Box = tuple[float, float, float, float]
LABELS = ("object_count", "avg_obj_size", "spatial_spread")
_PERCENTILES = (33.3, 66.7)


def box_labels(
    boxes: Mapping[str, Sequence[Box]], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, Label]]:
    """The published probes' three labels of every image of `sizes`.

    `object_count`: 1, 2-4, 5-10 or 11+. `avg_obj_size`: mean box area over image area, as small, medium or large.
    `spatial_spread`: standard deviation of the distances of box centres from the image's centre, both as
    fractions of its sides, as concentrated, moderate or dispersed. The cuts are the 33.3 and 66.7 percentiles
    over the images with boxes; a value on a cut belongs below it. An image without boxes has none of the labels
    (the published scripts count it as 1, small and concentrated).

    Args:
        boxes: boxes by image; an image without any may be absent.
        sizes: (width, height) in pixels by image.
    """
    measured = {image: _measure(boxes[image], size) for image, size in sizes.items() if boxes.get(image)}
    found: dict[str, dict[str, Label]] = {image: dict.fromkeys(LABELS) for image in sizes}
    if not measured:
        return found
    table = np.array(list(measured.values()))
    size_cuts, spread_cuts = (np.percentile(table[:, at], _PERCENTILES) for at in (1, 2))
    for image, (count, size, spread) in measured.items():
        found[image] = {
            "object_count": _bin(count, (1, 4, 10), ("1", "2-4", "5-10", "11+")),
            "avg_obj_size": _bin(size, size_cuts, ("small", "medium", "large")),
            "spatial_spread": _bin(spread, spread_cuts, ("concentrated", "moderate", "dispersed")),
        }
    return found


def _measure(boxes: Sequence[Box], size: tuple[int, int]) -> tuple[float, float, float]:
    sides = np.array(size, dtype=np.float64)
    array = np.asarray(boxes, dtype=np.float64)
    area = (array[:, 2] * array[:, 3] / sides.prod()).mean()
    centres = (array[:, :2] + array[:, 2:] / 2) / sides
    spread = np.hypot(*(centres - 0.5).T).std()
    # equal boxes differ in the last bits only, which must not put them on two sides of a cut
    return float(len(array)), round(float(area), 12), round(float(spread), 12)


def _bin(value: float, cuts: Sequence[float] | np.ndarray, names: Sequence[str]) -> str:
    return names[int(np.searchsorted(cuts, value, side="left"))]
