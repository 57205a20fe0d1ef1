"""Stores behind a URL, through fsspec: `s3://`, `gs://`, `https://`, `memory://` and what else it knows.

A `RemotePath` answers the few questions that a store asks of a `pathlib.Path`. Where a local read is one
system call, a remote one is several requests at once, since each waits for the network. Objects appear whole,
and are created only where there is none: that is all that writing needs.
"""

from __future__ import annotations

import importlib
import os
import stat
import uuid
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

    def fill(self, content: memoryview, offset: int, more: int = 0) -> tuple[int, bytes] | None:
        """Fill `content` from `offset` on by several requests at once, and read `more` bytes after it.

        Returns the CRC-32C of `content` and those bytes, or None if the file ends before.

        Raises:
            OSError: the file cannot be read.
        """
        size = len(content)
        starts = range(0, size, _REQUEST)
        ends = [min(at + _REQUEST, size) for at in starts]
        ends[-1] += more
        begin, end = [offset + at for at in starts], [offset + at for at in ends]
        pieces = _asked(
            self, lambda: self.system.cat_ranges([self.inside] * len(begin), begin, end, on_error="raise")
        )
        found, tail = 0, b""
        for at, stop, piece in zip(starts, ends, pieces, strict=True):
            if len(self._part(piece, stop - at)) != stop - at:
                return None
            inside = memoryview(piece)[: min(stop, size) - at]
            content[at : at + len(inside)] = inside
            found = crc32c(inside, found)
            tail = bytes(piece[len(inside) :])
        return found, tail

    def create(self, data: bytes) -> None:
        """Put an object there unless there is one: of several callers with different data one succeeds.

        Raises:
            FileExistsError: there is one with other content. OSError: it cannot be written.
        """
        try:
            _asked(self, lambda: self.system.pipe_file(self.inside, data, mode="create"))
        except FileExistsError:
            # A request that was sent again, since its answer got lost, meets the object it made.
            if self.read_bytes() != data:
                raise

    def write_bytes(self, data: bytes) -> None:
        """Put an object there, in place of another if there is one.

        Raises:
            OSError: it cannot be written.
        """
        _asked(self, lambda: self.system.pipe_file(self.inside, data))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object.

        Raises:
            FileNotFoundError: there is none, unless `missing_ok`. OSError: it cannot be removed.
        """
        try:
            _asked(self, lambda: self.system.rm_file(self.inside))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def sizes(self) -> dict[str, int]:
        """Return the size of every object below by its name relative to this place.

        Raises:
            OSError: the place cannot be listed.
        """
        self.system.invalidate_cache()
        found = _asked(self, lambda: self.system.find(self.inside, detail=True))
        above = len(self.inside) + 1
        return {name[above:]: int(entry["size"]) for name, entry in found.items()}

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


def at_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` replaced by the home folder, where there is one; `mg.open` has no shell to do it."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def place_of(path: str | os.PathLike[str]) -> Place:
    """Return the local path or, for a URL, the remote one.

    Raises:
        StoreError: fsspec, or what it needs for this kind of URL, is not installed; or the URL is not valid.
    """
    text = os.fspath(path)
    # fsspec's own file system neither syncs nor renames: a killed writer leaves torn files.
    for scheme in ("file://", "local://"):
        text = text.removeprefix(scheme)
    if "://" not in text:
        return at_home(text)
    try:
        core = importlib.import_module("fsspec.core")
        system, inside = core.url_to_fs(text)
    except (ImportError, ValueError) as error:
        raise StoreError(
            f"cannot open {text} ({error}): install fsspec with what this kind of URL needs, e.g. "
            f"pip install 'fsspec[http]' or 'fsspec[s3]'"
        ) from None
    except Exception as error:  # each file system has its own for what it cannot make of a URL
        raise StoreError(f"cannot open {text} ({type(error).__name__} {error}): check the URL") from error
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
        return file.read(status.st_size)


def writable(place: P) -> P:
    """Return a place where files can be created exclusively, as commits need it.

    A remote one is tried out with an object that is removed again.

    Raises:
        StoreError: it cannot be written, or does not refuse to create what is there.
    """
    if not isinstance(place, RemotePath):
        return place
    trial = place / "_owner" / f"trial-{uuid.uuid4().hex}"
    problem = "it would replace an object that is there, so two writers could not tell each other apart"
    try:
        trial.create(b"1")
        try:
            trial.create(b"2")
        except FileExistsError:
            problem = ""
        trial.unlink(missing_ok=True)
    except OSError as error:
        problem = " ".join(str(error).split())
    if problem:
        raise StoreError(
            f"{place} cannot be written ({problem}): write to a local folder and copy it there, or check "
            f"address, credentials and the version of the package behind this kind of URL"
        )
    return place


def local(place: Place) -> Path:
    """Return a place that is known to be local as a `Path`."""
    assert isinstance(place, Path)
    return place
