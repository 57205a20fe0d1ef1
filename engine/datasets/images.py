"""Image files to RGB, by Pillow."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

Source = Path | bytes


def read_image(source: Source) -> Any:
    """A PIL image in RGB, upright by its EXIF orientation, fully decoded and detached from its file.

    Transparency is dropped; 16-bit grey is scaled to 8 bits (Pillow's own conversion would clip it); of an
    animation, the first frame.

    Raises:
        Exception: Pillow cannot read it, or it is cut short.
    """
    from PIL import Image, ImageOps

    with Image.open(_opened(source)) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return (_eight_bits(upright) if upright.mode.startswith("I") else upright).convert("RGB")


def pixels(source: Source) -> int:
    """Width times height by the header, without decoding.

    Raises:
        Exception: Pillow cannot read it.
    """
    from PIL import Image

    with Image.open(_opened(source)) as image:
        return int(image.width) * int(image.height)


def _eight_bits(image: Any) -> Any:
    from PIL import Image

    values = np.asarray(image)
    if values.max(initial=0) > 255:
        values = np.clip(values, 0, 65535) >> 8
    return Image.fromarray(values.astype(np.uint8))


def _opened(source: Source) -> Any:
    return BytesIO(source) if isinstance(source, bytes) else source
