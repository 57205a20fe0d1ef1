"""Draws a digit scan on a canvas with a colour, a place, a size and a background.

Every number on the way is a dyadic rational that float64 holds exactly, so that the pixels are the same
bytes on every machine, whatever the order in which a BLAS adds.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CANVAS = 32  # pixels a side
SCAN = 8  # cells a side of a UCI scan, ink 0..16

# Every colour is brighter than every background: ink has one sign everywhere. Without that (white and gray
# behind dark blue) CLIP training from scratch was still at chance after 180 steps of 256 images.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (240, 70, 60),
    "green": (60, 210, 80),
    "blue": (80, 120, 240),
    "yellow": (240, 220, 60),
    "purple": (200, 90, 235),
    "cyan": (60, 220, 225),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 14),
    "gray": (76, 76, 76),
    "navy": (16, 24, 84),
    "brown": (84, 48, 20),
}
PLACES: dict[str, tuple[int, int]] = {  # centre of the digit, pixels from the left and from the top
    "left": (10, 16),
    "right": (22, 16),
    "top": (16, 10),
    "bottom": (16, 22),
    "middle": (16, 16),
}
SIZES: dict[str, int] = {"small": 12, "medium": 16, "large": 20}  # pixels a side

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "place": tuple(PLACES),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}

_COLOR_TABLE = np.array(list(COLORS.values()), dtype=np.int64)
_BACKGROUND_TABLE = np.array(list(BACKGROUNDS.values()), dtype=np.int64)
_PLACE_TABLE = np.array(list(PLACES.values()), dtype=np.int64)
_SIZE_TABLE = np.array(list(SIZES.values()), dtype=np.int64)
_TINT = 14  # largest shift of a colour channel, out of 255
_JITTER = 1  # largest shift of the place, pixels
_STEPS = 64  # interpolation weights are multiples of 1/64


@dataclass(frozen=True, slots=True)
class Looks:
    """How n digits look: four attribute codes [n], the place jitter [n, 2] and the two tints [n, 3]."""

    color: NDArray[np.int64]
    place: NDArray[np.int64]
    size: NDArray[np.int64]
    background: NDArray[np.int64]
    jitter: NDArray[np.int64]
    ink_tint: NDArray[np.int64]
    background_tint: NDArray[np.int64]

    def __len__(self) -> int:
        """n."""
        return len(self.color)

    def centers(self) -> NDArray[np.int64]:
        """Centres of the digits [n, 2]: pixels from the left and from the top."""
        return _PLACE_TABLE[self.place] + self.jitter

    def sides(self) -> NDArray[np.int64]:
        """Sides of the digits' boxes [n], pixels."""
        return _SIZE_TABLE[self.size]


def random_looks(n: int, rng: np.random.Generator) -> Looks:
    """n looks with every attribute uniform and independent: what training draws at each step."""
    return Looks(
        color=rng.integers(len(COLORS), size=n),
        place=rng.integers(len(PLACES), size=n),
        size=rng.integers(len(SIZES), size=n),
        background=rng.integers(len(BACKGROUNDS), size=n),
        jitter=rng.integers(-_JITTER, _JITTER + 1, size=(n, 2)),
        ink_tint=rng.integers(-_TINT, _TINT + 1, size=(n, 3)),
        background_tint=rng.integers(-_TINT, _TINT + 1, size=(n, 3)),
    )


def keyed_looks(key: str) -> Looks:
    """The one look (n = 1) of a key, from SHA-256: no numpy stream, so no version can move it."""
    digest = hashlib.sha256(key.encode()).digest()
    # 16 bits a draw: modulo by at most 29 leaves a bias below 1e-3.
    words = np.frombuffer(digest, dtype=">u2").astype(np.int64)

    def code(index: int, count: int) -> NDArray[np.int64]:
        return words[index : index + 1] % count

    def tint(start: int) -> NDArray[np.int64]:
        return words[None, start : start + 3] % (2 * _TINT + 1) - _TINT

    return Looks(
        color=code(0, len(COLORS)),
        place=code(1, len(PLACES)),
        size=code(2, len(SIZES)),
        background=code(3, len(BACKGROUNDS)),
        jitter=words[None, 4:6] % (2 * _JITTER + 1) - _JITTER,
        ink_tint=tint(6),
        background_tint=tint(9),
    )


def _weights(center: NDArray[np.int64], side: NDArray[np.int64]) -> NDArray[np.float64]:
    """Linear interpolation matrices [n, CANVAS, SCAN] from scan cells to canvas pixels along one axis."""
    pixel = np.arange(CANVAS)[None, :] + 0.5 - (center - side // 2)[:, None]
    position = pixel * SCAN / side[:, None] - 0.5
    distance = np.abs(position[:, :, None] - np.arange(SCAN))
    exact: NDArray[np.float64] = np.rint(np.clip(1.0 - distance, 0.0, 1.0) * _STEPS) / _STEPS
    return exact


def render(scans: NDArray[np.uint8], looks: Looks) -> NDArray[np.uint8]:
    """Images uint8 [n, CANVAS, CANVAS, 3] of scans [n, SCAN, SCAN] (ink 0..16) under n looks."""
    if len(scans) != len(looks):
        raise ValueError(f"got {len(scans)} scans and {len(looks)} looks; expected as many of each")
    center, side = looks.centers(), looks.sides()
    columns = _weights(center[:, 0], side)
    rows = _weights(center[:, 1], side)
    ink = rows @ scans.astype(np.float64) @ columns.transpose(0, 2, 1) / 16.0
    # 8x8 scans are antialiased: a gain of 1.5 gives strokes their full colour.
    alpha = np.minimum(1.5 * ink, 1.0)[..., None]
    front = np.clip(_COLOR_TABLE[looks.color] + looks.ink_tint, 0, 255)[:, None, None, :]
    back = np.clip(_BACKGROUND_TABLE[looks.background] + looks.background_tint, 0, 255)[:, None, None, :]
    images: NDArray[np.uint8] = np.rint(back + alpha * (front - back)).astype(np.uint8)
    return images
