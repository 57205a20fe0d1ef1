"""Opening the arrays of a file or folder without reading them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modegap.engine.errors import EngineError

from .formats import LENGTH, Format, Rows, h5py, read_sidecar, sidecar_of


@contextmanager
def opened(
    path: Path, kind: Format, *, width: int | None = None, dtype: str = "float16"
) -> Iterator[tuple[dict[str, Rows], dict[str, Any]]]:
    """Yield the arrays of a path by name and its metadata (HDF5 attributes, and the sidecar's "provenance").

    `width` and `dtype` describe a single raw file. An npz is read whole, of all others only the rows that
    are asked for.

    Raises:
        EngineError: no such file, or not one of this format.
    """
    if not path.exists():
        raise EngineError(f"no file at {path}: check the path")
    with ExitStack() as stack:
        beside: dict[str, Any] = dict(read_sidecar(sidecar_of(path, kind)).get("provenance", {}))
        metadata: dict[str, Any] = {}
        try:
            if kind == "hdf5":
                file = stack.enter_context(h5py().File(path, "r"))
                arrays: dict[str, Rows] = {name: file[name] for name in file if hasattr(file[name], "shape")}
                metadata = {key: _decoded(value) for key, value in file.attrs.items()}
            elif kind == "safetensors":
                arrays, metadata = _safetensors(path, stack)
            elif kind == "npz":
                npz = stack.enter_context(np.load(path, allow_pickle=False))
                arrays = {name: npz[name] for name in npz.files}
            elif kind == "npy":
                files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
                arrays = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
            else:
                arrays = _raw(path, width, dtype)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise EngineError(f"cannot read {path} as {kind} ({' '.join(str(error).split())})") from None
        yield arrays, metadata | beside


def _decoded(value: Any) -> Any:
    """Return an HDF5 attribute as JSON can hold it; text that is JSON was written as such."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _safetensors(path: Path, stack: ExitStack) -> tuple[dict[str, Rows], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(str(path), framework="np"))
        names = list(file.keys())
        metadata = {key: _decoded(text) for key, text in (file.metadata() or {}).items()}
        return {name: _Slice(file.get_slice(name)) for name in names}, metadata
    except SafetensorError as error:
        raise ValueError(str(error)) from None


_DTYPES = {"F16": "float16", "F32": "float32", "F64": "float64", "I64": "int64", "I32": "int32"}


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


def _raw(path: Path, width: int | None, dtype: str) -> dict[str, Rows]:
    if path.is_dir():
        described: Mapping[str, Any] = read_sidecar(sidecar_of(path, "raw")).get("arrays", {})
        if not described:
            raise ValueError("no arrays are described in its modegap.json")
        for name, entry in described.items():
            if entry["dtype"] not in _DTYPES.values():
                raise ValueError(
                    f"array {name!r} has dtype {entry['dtype']!r}, not {', '.join(_DTYPES.values())}"
                )
        return {
            name: np.memmap(path / f"{Path(name).name}.bin", entry["dtype"], "r", shape=tuple(entry["shape"]))
            for name, entry in described.items()
        }
    if width is None or width < 1:
        raise ValueError("a raw file needs its width: pass --width, and --raw_dtype if it is not float16")
    row = width * np.dtype(dtype).itemsize
    if path.stat().st_size == 0 or path.stat().st_size % row:
        raise ValueError(
            f"its {path.stat().st_size} bytes are not whole rows of {width} {dtype} ({row} bytes)"
        )
    return {path.stem: np.memmap(path, dtype, "r").reshape(-1, width)}


def split(
    arrays: Mapping[str, Rows], wanted: tuple[str, ...] | None
) -> tuple[dict[str, Rows], dict[str, np.ndarray]]:
    """Return the arrays of the points and the lengths of those that have token rows.

    Raises:
        ValueError: a name that is not there, or nothing to import.
        EngineError: an array that is not rows of floats.
    """
    points = {name: rows for name, rows in arrays.items() if not name.endswith(LENGTH)}
    if wanted is not None:
        if missing := [name for name in wanted if name not in points]:
            raise ValueError(f"no array {missing[0]!r}: this file has {', '.join(sorted(points)) or 'none'}")
        points = {name: points[name] for name in wanted}
    if not points:
        raise ValueError("there are no arrays to import")
    for name, rows in points.items():
        if len(rows.shape) != 2 or np.dtype(rows.dtype).kind != "f":
            raise EngineError(
                f"array {name!r} is {rows.dtype} {tuple(rows.shape)}, expected floats [rows, width]: "
                f"choose others with --points"
            )
    lengths = {name: np.asarray(arrays[name + LENGTH][:]) for name in points if name + LENGTH in arrays}
    return points, lengths
