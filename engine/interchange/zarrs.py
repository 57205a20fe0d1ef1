"""Any other Zarr data, of version 2 or 3 and with any codec, through zarr-python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .content import Content
from .formats import Rows, plain


def opened_zarr(path: str) -> Content:
    """Return the arrays of a Zarr array or group, nested ones with "." for "/", their attributes as metadata.

    Raises:
        ValueError: an array is decoded by unpickling, which would run what is in it.
    """
    import zarr
    from zarr.errors import BaseZarrError

    try:
        root = zarr.open(path, mode="r")
        arrays: dict[str, Rows] = {}
        if isinstance(root, zarr.Array):
            name = path.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
            arrays[name] = _Array(root)
        else:
            arrays = {name: _Array(array) for name, array in _arrays(root, "")}
    except (BaseZarrError, FileNotFoundError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    return Content(arrays, {str(key): plain(value) for key, value in dict(root.attrs).items()})


def _arrays(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    import zarr

    for name, member in sorted(group.members()):
        if isinstance(member, zarr.Array):
            if np.dtype(member.dtype).kind in "fiu":
                yield above + name, member
        else:
            yield from _arrays(member, f"{above}{name}.")


class _Array:
    """A Zarr array."""

    def __init__(self, array: Any) -> None:
        if _mentions_pickle(array.metadata.to_dict()):
            raise ValueError(f"{array.name} is encoded as Python pickles, which are never loaded")
        self._array = array
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self._array[rows])


def _mentions_pickle(value: Any) -> bool:
    """Return whether a codec anywhere in the metadata is one that unpickles."""
    if isinstance(value, dict):
        return any(
            (key in ("id", "name") and isinstance(inner, str) and "pickle" in inner.lower())
            or (key != "attributes" and _mentions_pickle(inner))
            for key, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return any(_mentions_pickle(inner) for inner in value)
    config = getattr(value, "get_config", None) or getattr(value, "to_dict", None)
    return config is not None and not isinstance(value, type) and _mentions_pickle(config())
