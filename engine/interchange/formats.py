"""The formats by name, and which one a path means."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np

from modegap.engine.errors import EngineError
from modegap.stores.origin import canonical_json

Format = Literal["hdf5", "npy", "npz", "safetensors", "raw", "datasets"]
FORMATS: tuple[Format, ...] = get_args(Format)
Source = Literal["hdf5", "npy", "npz", "safetensors", "raw", "datasets", "zarr", "store"]
SOURCES: tuple[Source, ...] = get_args(Source)

T = TypeVar("T", bound=str)

SIDECAR = "modegap.json"
LENGTH, IDS, MODALITY, POOLED = ".length", ".ids", ".modality", ".pooled"
COLUMNS: dict[str, np.dtype] = {
    LENGTH: np.dtype(np.int64),
    IDS: np.dtype(np.int32),
    MODALITY: np.dtype(np.uint8),
}
"""Arrays that belong to the token rows of a point: rows a sample, then token id and modality a row."""

npy: Any = np.lib.format
"""numpy's npy headers, untyped before numpy 2.4."""

BLOCK_BYTES = 16 * 2**20
_SUFFIXES: dict[str, Format] = {
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".bin": "raw",
    ".raw": "raw",
}


class Rows(Protocol):
    """An array in a file: slicing reads those rows only, where the format allows it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, then width if it has two dimensions."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An array to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def format_of(path: Path, given: str | None = None) -> Format:
    """Return the format to write that is given, or that the path's suffix means.

    Raises:
        ValueError: an unknown format, or a path that does not say which.
    """
    if given is not None:
        return _named(given, FORMATS)
    return _by_suffix(path, FORMATS)


def source_of(path: str, given: str | None = None) -> Source:
    """Return the format to read that is given, or that the path's suffix or (for a folder) content means.

    Raises:
        ValueError: an unknown format, or a path that does not say which.
    """
    if given is not None:
        return _named(given, SOURCES)
    folder = Path(path)
    if "://" in path:
        return "store"
    if not folder.is_dir():
        return _by_suffix(folder, SOURCES)
    if any((folder / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        return "store" if (folder / "_commit").is_dir() else "zarr"
    if (folder / "dataset_info.json").is_file():
        return "datasets"
    return "npy" if any(folder.glob("*.npy")) else "raw"


def _named(given: str, known: tuple[T, ...]) -> T:
    if given not in known:
        raise ValueError(f"format must be one of {', '.join(known)}, got {given!r}")
    return next(name for name in known if name == given)


def _by_suffix(path: Path, known: tuple[str, ...]) -> Format:
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    raise ValueError(f"cannot tell the format of {path}: name one of {', '.join(known)} with --format")


def sidecar_of(path: Path, kind: str) -> Path:
    """Return the JSON file that goes with a file, or is in a folder, of arrays."""
    inside = kind in ("npy", "raw", "datasets") and (path.is_dir() or not path.suffix)
    return path / SIDECAR if inside else path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return what a sidecar holds, nothing if there is none.

    Raises:
        EngineError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not JSON ({error}): mend it, or move it away to do without") from None
    if not isinstance(found, dict):
        raise EngineError(f"{path} is not a JSON object: mend it, or move it away to do without")
    return found


def plain(value: Any) -> Any:
    """Return an attribute of a file as provenance can hold it: what JSON cannot say, such as NaN, as text."""
    try:
        canonical_json(value)
    except ValueError:
        return str(value)
    return value


def as_json(value: Any) -> str:
    """Return JSON text."""
    return json.dumps(value, allow_nan=False, indent=1)


def h5py() -> Any:
    """Import h5py.

    Raises:
        EngineError: it is not installed.
    """
    return optional("h5py", "HDF5 files need h5py", "hdf5")


def optional(module: str, need: str, extra: str) -> Any:
    """Import a package that is not a dependency.

    Raises:
        EngineError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EngineError(f"{need}: pip install 'modegap[{extra}]' (or pip install {module})") from None


def is_file_name(name: str) -> bool:
    """Return whether the name of an array may be that of a file: it cannot leave its folder."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,120}", name) is not None


def attributes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an HDF5 attribute can hold: plain values as they are, anything else as JSON text."""
    plain = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
    # An attribute lives in the object header, which takes 64 KiB.
    return {key: value for key, value in plain.items() if not isinstance(value, str) or len(value) < 60_000}
