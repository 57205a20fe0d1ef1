"""A gallery of examples: PNG data URIs for the page, and one SVG/PNG sheet for the figures folder."""

from __future__ import annotations

import base64
import io
from typing import Any

from .charts import PNG_SCALE, Drawing
from .model import Gallery, Tile
from .page import render

TILE = 120  # units a side on the sheet
MIN_PIXELS = 96  # smaller pictures are enlarged by a whole factor, so that the pixels stay square
MAX_PIXELS = 256  # larger ones are reduced: a gallery of twelve stays near a megabyte


def png_bytes(image: Any) -> bytes:
    """A PIL image, PNG bytes or uint8 array [h, w] or [h, w, 3] as a PNG of 96 to 256 pixels a side or so.

    Raises:
        ValueError: the array is no picture.
    """
    from PIL import Image

    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    elif not isinstance(image, Image.Image):
        if getattr(image, "ndim", 0) not in (2, 3) or str(getattr(image, "dtype", "")) != "uint8":
            got = f"{type(image).__name__} of shape {getattr(image, 'shape', None)}"
            raise ValueError(f"got a tile image {got}; expected a PIL image, PNG bytes or uint8 [h, w, 3]")
        image = Image.fromarray(image)
    image = image.convert("RGB")
    longest = max(image.size)
    if longest < MIN_PIXELS:
        factor = -(-MIN_PIXELS // longest)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif longest > MAX_PIXELS:
        image.thumbnail((MAX_PIXELS, MAX_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_uri(image: Any) -> str:
    """The `data:image/png` URI of `png_bytes(image)`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def draw_gallery(gallery: Gallery, pictures: list[str], columns: int = 6) -> Drawing:
    """The sheet of a gallery whose pictures are the given data URIs."""
    import vl_convert

    columns = min(columns, max(len(pictures), 1))
    places = [(index % columns, index // columns) for index in range(len(pictures))]
    tiles = [
        {"x": x * (TILE + 16) + 8, "y": y * (TILE + 56) + 8, "uri": uri, "tile": tile}
        for (x, y), uri, tile in zip(places, pictures, gallery.tiles, strict=True)
    ]
    height = (TILE + 56) * (-(-len(pictures) // columns)) + 8
    svg = render(
        "gallery.svg", tiles=tiles, side=TILE, width=columns * (TILE + 16), height=height, title=gallery.title
    )
    png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
    return Drawing(svg, png, [[_row(tile) for tile in gallery.tiles]])


def _row(tile: Tile) -> dict[str, Any]:
    return {"target": tile.target, "generated": tile.generated, "correct": tile.correct, "note": tile.note}
