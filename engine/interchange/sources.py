"""Opening the arrays of a file or folder without reading them."""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modegap.engine.errors import EngineError

from .content import Content
from .formats import Rows, Source, h5py, is_file_name, plain, read_sidecar, sidecar_of
from .npz import opened_npz
from .paper import read_hdf5
from .stored import opened_store
from .tables import opened_dataset
from .zarrs import opened_zarr

_BAD = (ValueError, TypeError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@contextmanager
def opened(path: str, kind: Source, *, width: int | None = None, dtype: str = "float16") -> Iterator[Content]:
    """Yield what a path holds; only the rows that are asked for are read.

    `width` and `dtype` describe a single raw file.

    Raises:
        EngineError: no such file, not one of this format, or damaged (also while its rows are read).
        StoreError: a store, or what is inside it, cannot be read.
    """
    place = Path(path)
    if "://" not in path and not place.exists():
        raise EngineError(f"no file at {path}: check the path")
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise EngineError(f"{path} is a pipe or a device: write what it gives to a file, and import that")
    with ExitStack() as stack:
        try:
            content = _open(path, place, kind, stack, width, dtype)
        except _BAD as error:
            said = " ".join(str(error).split())
            raise EngineError(
                f"cannot read {path} as {kind} ({said}): check that it is whole, make it again, or name its format "
                f"with --format"
            ) from None
        if kind != "store" and "://" not in path:
            beside = sidecar_of(place, kind)
            content.add_sidecar(read_sidecar(beside), beside)
        try:
            yield content
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise EngineError(f"{path} is damaged ({error}): make it again") from None


def _open(path: str, place: Path, kind: Source, stack: ExitStack, width: int | None, dtype: str) -> Content:
    if kind == "store":
        return opened_store(path)
    if kind == "zarr":
        return opened_zarr(path)
    if kind == "datasets":
        return opened_dataset(path)
    if kind == "hdf5":
        return read_hdf5(stack.enter_context(h5py().File(place, "r")))
    if kind == "safetensors":
        return _safetensors(place, stack)
    if kind == "npz":
        return Content(stack.enter_context(opened_npz(place)))
    if kind == "npy":
        files = sorted(place.glob("*.npy")) if place.is_dir() else [place]
        return Content({file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files})
    return Content(_raw(place, width, dtype))


def _safetensors(path: Path, stack: ExitStack) -> Content:
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(str(path), framework="np"))
        names = list(file.keys())
        metadata = {key: plain(_decoded(text)) for key, text in (file.metadata() or {}).items()}
        slices = {name: file.get_slice(name) for name in names}
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    arrays: dict[str, Rows] = {}
    for name, tensor in slices.items():
        arrays[name] = _BFloat16(path, name) if tensor.get_dtype() == "BF16" else _Slice(tensor)
    return Content(arrays, metadata)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


_DTYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
}


class _Slice:
    """A tensor of a safetensors file."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.get_shape())
        name = tensor.get_dtype()
        if name not in _DTYPES:
            raise ValueError(f"tensors of dtype {name} are not supported: convert them to F16 or F32")
        self.dtype = np.dtype(_DTYPES[name])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return np.asarray(self._tensor[start:stop])


class _BFloat16:
    """A tensor of bfloat16, which numpy does not have: the upper half of float32, so nothing is rounded."""

    def __init__(self, path: Path, name: str) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(size))[name]
        self.shape = tuple(entry["shape"])
        self.dtype = np.dtype(np.float32)
        offset = 8 + size + entry["data_offsets"][0]
        # safe_open has checked that the offsets lie in the file and fit the shape.
        self._bits = np.memmap(path, "<u2", "r", offset, self.shape) if np.prod(self.shape) else None

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._bits is None:
            return np.empty((len(range(*rows.indices(self.shape[0]))), *self.shape[1:]), self.dtype)
        return (self._bits[rows].astype(np.uint32) << 16).view(np.float32)


def _raw(path: Path, width: int | None, dtype: str) -> dict[str, Rows]:
    if path.is_dir():
        described: Mapping[str, Any] = read_sidecar(sidecar_of(path, "raw")).get("arrays", {})
        if not isinstance(described, Mapping) or not described:
            raise ValueError("no arrays are described in its modegap.json")
        return {name: _mapped(path, name, entry) for name, entry in described.items()}
    if width is None or width < 1:
        raise ValueError("a raw file needs its width: pass --width, and --raw_dtype if it is not float16")
    row = width * np.dtype(dtype).itemsize
    if path.stat().st_size == 0 or path.stat().st_size % row:
        raise ValueError(
            f"its {path.stat().st_size} bytes are not whole rows of {width} {dtype} ({row} bytes)"
        )
    return {path.stem: np.memmap(path, dtype, "r").reshape(-1, width)}


def _mapped(folder: Path, name: str, entry: Mapping[str, Any]) -> Rows:
    if not is_file_name(name):
        raise ValueError(f"array name {name!r} is not allowed")
    if entry["dtype"] not in _DTYPES.values():
        raise ValueError(f"array {name!r} has dtype {entry['dtype']!r}, not {', '.join(_DTYPES.values())}")
    shape = tuple(entry["shape"])
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"array {name!r} has the impossible shape {shape}")
    if 0 in shape:
        return np.empty(shape, entry["dtype"])
    file, needed = folder / f"{name}.bin", math.prod(shape) * np.dtype(entry["dtype"]).itemsize
    if file.stat().st_size < needed:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, its shape {shape} needs {needed}")
    return np.memmap(file, entry["dtype"], "r", shape=shape)
