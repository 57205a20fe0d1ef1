"""Writing arrays block by block, in bounded memory."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from modegap.stores import ActivationStore

from .formats import POOLED, Format, Planned, attributes_of, h5py, npy
from .paper import write_samples

Blocks = Callable[[str], Iterator[np.ndarray]]

_SAFETENSORS = {"float16": "F16", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}


def write_arrays(
    path: Path, kind: Format, planned: Mapping[str, Planned], blocks: Blocks, store: ActivationStore
) -> None:
    """Write every planned array, whose rows `blocks(name)` yields in order, to a new file or folder.

    What the format can say of the store's samples and provenance goes with them.

    Raises:
        EngineError: h5py is missing. OSError: the disk is full or read-only.
    """
    if kind == "hdf5":
        _hdf5(path, planned, blocks, store)
    elif kind == "npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, array in planned.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _npy(member, array, blocks(name))  # type: ignore[arg-type]  # a writable binary file
    elif kind == "safetensors":
        with path.open("wb") as file:
            file.write(_safetensors_header(planned, store.provenance))
            for name in planned:
                _dump(file, blocks(name))
    else:
        path.mkdir()
        for name, array in planned.items():
            with (path / f"{name}.{'npy' if kind == 'npy' else 'bin'}").open("wb") as file:
                if kind == "npy":
                    _npy(file, array, blocks(name))
                else:
                    _dump(file, blocks(name))


def _dump(file: BinaryIO, blocks: Iterator[np.ndarray]) -> None:
    for block in blocks:
        file.write(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)


def _npy(file: BinaryIO, array: Planned, blocks: Iterator[np.ndarray]) -> None:
    header = {"descr": array.dtype.newbyteorder("<").str, "fortran_order": False, "shape": array.shape}
    npy.write_array_header_2_0(file, header)
    _dump(file, blocks)


def _safetensors_header(planned: Mapping[str, Planned], metadata: Mapping[str, Any]) -> bytes:
    """Return the length and the JSON that a safetensors file begins with, padded to align the data."""
    texts = {key: str(value) for key, value in attributes_of(metadata).items()}
    entries: dict[str, Any] = {"__metadata__": texts}
    at = 0
    for name, array in planned.items():
        kind = _SAFETENSORS[array.dtype.name]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _hdf5(path: Path, planned: Mapping[str, Planned], blocks: Blocks, store: ActivationStore) -> None:
    with h5py().File(path, "w") as file:
        for name, array in planned.items():
            chunks = (max(1, min(256, array.shape[0])), *array.shape[1:]) if array.shape[0] else None
            made = file.create_dataset(name, array.shape, array.dtype, chunks=chunks)
            at = 0
            for block in blocks(name):
                made[at : at + len(block)] = block
                at += len(block)
        widths = {
            name: array.shape[1]
            for name, array in planned.items()
            if len(array.shape) == 2 and not name.endswith(POOLED)
        }
        write_samples(file, store.samples, store.labels, widths, store.provenance)
