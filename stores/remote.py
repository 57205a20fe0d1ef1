"""Stores behind a URL, read through fsspec: `s3://`, `gs://`, `https://`, `memory://` and what else it knows.

A `RemotePath` answers the few questions that reading asks of a `pathlib.Path`. Where a local read is one
system call, a remote one is several requests at once, since each waits for the network.
"""

from __future__ import annotations

import importlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .checksum import crc32c
from .errors import StoreError

_REQUEST = 4 * 2**20
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class RemotePath:
    """A file or folder of an fsspec file system; `url` names it for people."""

    system: Any
    inside: str
    url: str

    def __truediv__(self, part: str) -> RemotePath:
        """Return what is at `part` below."""
        return self.joinpath(part)

    def joinpath(self, *parts: str) -> RemotePath:
        """Return what is at the parts below."""
        more = "".join(f"/{part}" for part in parts)
        return RemotePath(self.system, self.inside.rstrip("/") + more, self.url.rstrip("/") + more)

    def __str__(self) -> str:
        """Return the URL."""
        return self.url

    @property
    def name(self) -> str:
        """The last part."""
        return self.inside.rpartition("/")[2]

    def exists(self) -> bool:
        """Return whether something is there."""
        return bool(_asked(self, lambda: self.system.exists(self.inside)))

    def is_file(self) -> bool:
        """Return whether a file is there."""
        return bool(_asked(self, lambda: self.system.isfile(self.inside)))

    def is_dir(self) -> bool:
        """Return whether anything is below; one listing, and what it found is not kept."""
        return bool(self.names())

    def names(self) -> list[str]:
        """Return the names of what is directly below, nothing for a folder that is not there.

        Raises:
            OSError: the place cannot be listed.
        """
        self.system.invalidate_cache()
        try:
            entries = _asked(self, lambda: self.system.ls(self.inside, detail=False))
        except FileNotFoundError:
            return []
        return [str(entry).rstrip("/").rpartition("/")[2] for entry in entries]

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is directly below."""
        for name in self.names():
            yield self / name

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            FileNotFoundError: there is no such file. OSError: it cannot be read.
        """
        return bytes(_asked(self, lambda: self.system.cat_file(self.inside)))

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Return the content of files below by name, requested at once; what cannot be read is left out."""
        paths = {f"{self.inside}/{name}": name for name in names}
        found = _asked(self, lambda: self.system.cat(list(paths), on_error="omit")) if paths else {}
        return {paths[path]: bytes(data) for path, data in found.items() if path in paths}

    def size(self) -> int:
        """Return the size of the file in bytes.

        Raises:
            FileNotFoundError: there is no such file. OSError: the server does not say.
        """
        size = _asked(self, lambda: self.system.size(self.inside))
        if size is None:
            raise OSError(f"the server does not give the size of {self.url}")
        return int(size)

    def read_range(self, offset: int, length: int) -> bytes:
        """Return some bytes of the file, as many as there are.

        Raises:
            FileNotFoundError: there is no such file. OSError: it cannot be read.
        """
        stop = offset + length
        return self._part(
            _asked(self, lambda: self.system.cat_file(self.inside, start=offset, end=stop)), length
        )

    def _part(self, data: Any, length: int) -> bytes:
        """Return what was asked for; a server that knows no ranges answers with the whole file."""
        if len(data) > length:
            raise OSError(
                f"the server of {self.url} ignores byte ranges: use one that does not, or copy the store"
            )
        return bytes(data)

    def fill(self, content: memoryview, offset: int) -> int | None:
        """Fill `content` from `offset` on by several requests at once; return its CRC-32C, or None.

        Raises:
            OSError: the file cannot be read.
        """
        starts = range(0, len(content), _REQUEST)
        ends = [min(at + _REQUEST, len(content)) for at in starts]
        begin, end = [offset + at for at in starts], [offset + at for at in ends]
        pieces = _asked(
            self, lambda: self.system.cat_ranges([self.inside] * len(begin), begin, end, on_error="raise")
        )
        found = 0
        for at, stop, piece in zip(starts, ends, pieces, strict=True):
            if len(self._part(piece, stop - at)) != stop - at:
                return None
            content[at:stop] = piece
            found = crc32c(piece, found)
        return found

    def bytes_below(self) -> int:
        """Return the size of all files below."""
        return int(_asked(self, lambda: self.system.du(self.inside)))


Place = Path | RemotePath
P = TypeVar("P", Path, RemotePath, Place)


def _asked(path: RemotePath, ask: Callable[[], T]) -> T:
    """Return the answer of a file system; whatever it raises becomes an OSError, as of a local one."""
    try:
        return ask()
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{path.url}: {type(error).__name__} {error}") from error


def place_of(path: str | os.PathLike[str]) -> Place:
    """Return the local path or, for a URL, the remote one.

    Raises:
        StoreError: fsspec, or what it needs for this kind of URL, is not installed; or the URL is not valid.
    """
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    try:
        core = importlib.import_module("fsspec.core")
        system, inside = core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"cannot open {text} ({error}): install fsspec with what this kind of URL needs, e.g. "
            f"pip install 'fsspec[http]' or 'fsspec[s3]'"
        ) from None
    return RemotePath(system, str(inside).rstrip("/"), text.rstrip("/"))


def small_content(place: Place, limit: int) -> bytes:
    """Return the content of a file that is small unless something is wrong with it.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read. ValueError: it is no ordinary file (a
            pipe would wait for ever), or has more than `limit` bytes.
    """
    if isinstance(place, RemotePath):
        data = place.read_bytes()
        if len(data) > limit:
            raise ValueError(f"it has {len(data)} bytes, at most {limit} make sense")
        return data
    status = place.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        raise ValueError(f"it is no ordinary file of at most {limit} bytes")
    with place.open("rb") as file:
        return file.read(limit)


def local(place: Place) -> Path:
    """Return a place that can be written.

    Raises:
        StoreError: it is remote.
    """
    if isinstance(place, RemotePath):
        raise StoreError(
            f"{place} is remote, and remote stores are read-only: write to a local folder and copy it"
        )
    return place
