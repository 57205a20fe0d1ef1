"""Reading the arrays of an npz file as a stream: however large it is, one block is in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from modegap.engine.errors import EngineError

from .formats import Rows, npy

_PIECE = 2**20


@contextmanager
def opened_npz(path: Path) -> Iterator[dict[str, Rows]]:
    """Yield the arrays of an npz file by name.

    Rows are read from compressed and plain members alike, in one pass as long as they are asked for in order.
    A member in Fortran order has no rows that follow each other: it is read whole when first needed.

    Raises:
        ValueError: a member is not an npy file of plain numbers (Python objects are pickles, never loaded).
        zipfile.BadZipFile: it is not a zip file.
    """
    with zipfile.ZipFile(path) as archive:
        members = {
            name.removesuffix(".npy"): _Member(archive, name)
            for name in archive.namelist()
            if name.endswith(".npy")
        }
        try:
            yield {**members}
        finally:
            for member in members.values():
                member.close()


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has npy version {version}, expected 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which are pickled (allow_pickle=False)")
    return shape, fortran, dtype


class _Member:
    """One npy file in the archive, read forwards; reading backwards begins it again."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        with archive.open(name) as file:
            self.shape, self._fortran, self.dtype = _header(file, name)
        self._file: IO[bytes] | None = None
        self._at = 0
        self._whole: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> np.ndarray:
        if not self.shape:
            raise ValueError(f"{self._name} is a single number")
        start, stop, _ = rows.indices(self.shape[0])
        if self._fortran and len(self.shape) > 1:
            if self._whole is None:
                content = np.frombuffer(self._take(0, self.shape[0]), self.dtype)
                self._whole = content.reshape(self.shape, order="F")
            return self._whole[start:stop]
        values = np.frombuffer(self._take(start, max(start, stop)), self.dtype)
        return values.reshape(-1, *self.shape[1:])

    def _take(self, start: int, stop: int) -> bytearray:
        """Return the bytes of some rows."""
        row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        if self._file is None or start * row < self._at:
            self.close()
            self._file = self._archive.open(self._name)
            _header(self._file, self._name)
            self._at = 0
        while self._at < start * row:
            self._at += len(self._read(min(_PIECE, start * row - self._at)))
        data = self._read((stop - start) * row)
        self._at += len(data)
        return data

    def _read(self, count: int) -> bytearray:
        assert self._file is not None
        data = bytearray()
        while len(data) < count:
            piece = self._file.read(min(count - len(data), _PIECE))
            if not piece:
                raise EngineError(f"{self._name} ends early: the npz file is damaged, make it again")
            data += piece
        return data

    def close(self) -> None:
        """Close the member."""
        if self._file is not None:
            self._file.close()
            self._file = None
