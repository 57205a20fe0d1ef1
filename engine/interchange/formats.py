"""The formats by name, and which one a path means."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from modegap.engine.errors import EngineError

Format = Literal["hdf5", "npy", "npz", "safetensors", "raw"]
FORMATS: tuple[Format, ...] = get_args(Format)

SIDECAR = "modegap.json"
LENGTH = ".length"
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
    """Return the format that is given, or that the path's suffix or (for a folder) content means.

    Raises:
        ValueError: an unknown format, or a path that does not say which.
    """
    if given is not None:
        if given not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {given!r}")
        return next(name for name in FORMATS if name == given)
    if path.is_dir():
        return "npy" if any(path.glob("*.npy")) else "raw"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    raise ValueError(f"cannot tell the format of {path}: name one of {', '.join(FORMATS)} with --format")


def sidecar_of(path: Path, kind: Format) -> Path:
    """Return the JSON file that goes with a file, or is in a folder, of arrays."""
    return (
        path / SIDECAR if kind in ("npy", "raw") and not path.suffix else path.with_name(f"{path.name}.json")
    )


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return what a sidecar holds, nothing if there is none.

    Raises:
        EngineError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise EngineError(f"{path} is not JSON ({error}): mend it, or move it away to do without") from None
    if not isinstance(found, dict):
        raise EngineError(f"{path} is not a JSON object: mend it, or move it away to do without")
    return found


def as_json(value: Any) -> str:
    """Return JSON text."""
    return json.dumps(value, allow_nan=False, indent=1)


def h5py() -> Any:
    """Import h5py.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise EngineError("HDF5 files need h5py: pip install 'modegap[hdf5]' (or pip install h5py)") from None


def attributes_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an HDF5 attribute can hold: plain values as they are, anything else as JSON text."""
    plain = {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in values.items()
        if value is not None
    }
    # An attribute lives in the object header, which takes 64 KiB.
    return {key: value for key, value in plain.items() if not isinstance(value, str) or len(value) < 60_000}
