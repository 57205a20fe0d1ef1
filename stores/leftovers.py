"""What a writer finds when it begins: chunks that lost their file, and what a killed writer left half done."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .chunkfiles import file_bytes, has_its_size
from .commits import CommitLog
from .durable import is_temporary
from .errors import DamagedChunkError, StoreError
from .remote import Place, RemotePath, local
from .zarrjson import ArraySpec

_AT_ONCE = 8


def without_files(root: Place, log: CommitLog, owned: np.ndarray) -> list[int]:
    """Return the committed chunks of `owned` (bool [chunks]) whose file is missing or has another size.

    Raises:
        StoreError: the records cannot be read.
    """
    spec = log.spec
    committed = np.flatnonzero(owned & log.committed).tolist()
    if not isinstance(root, RemotePath):
        return [chunk for chunk in committed if not has_its_size(spec, root, chunk, log)]
    found = _objects(root, spec)
    return [chunk for chunk in committed if found.get(chunk) != _size(spec, log, chunk)]


def _size(spec: ArraySpec, log: CommitLog, chunk: int) -> int:
    try:
        return file_bytes(spec, chunk) or log.record(chunk).bytes
    except DamagedChunkError:
        return -1


def _objects(root: RemotePath, spec: ArraySpec) -> dict[int, int]:
    """Return the size of each chunk's object, by one listing."""
    rest = "/0" * (len(spec.shape) - 1)
    found = {}
    for name, size in root.joinpath(spec.path, "c").sizes().items():
        chunk = name.removesuffix(rest)
        if name == f"{chunk}{rest}" and chunk.isascii() and chunk.isdecimal() and str(int(chunk)) == chunk:
            found[int(chunk)] = size
    return found


def remove_leftovers(root: Place, log: CommitLog, owned: np.ndarray, wanted: np.ndarray) -> None:
    """Remove what a killed writer left of the chunks that are to be written.

    Raises:
        StoreError: a folder of the store is a link, which would take the writing elsewhere.
        OSError: it cannot be removed.
    """
    spec = log.spec
    if isinstance(root, RemotePath):
        stale = [chunk for chunk in _objects(root, spec) if chunk < len(wanted) and wanted[chunk]]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda chunk: spec.chunk_file(root, chunk).unlink(missing_ok=True), stale))
        return
    _remove_temporaries(local(log.folder), owned)
    if len(spec.shape) == 1:
        _remove_temporaries(spec.chunk_file(root, 0).parent, owned)
    else:
        for chunk in np.flatnonzero(wanted).tolist():
            folder = spec.chunk_file(root, chunk).parent
            refuse_link(folder)
            _remove_temporaries(folder, None)


def refuse_link(folder: Path) -> None:
    """Return if a folder is one, or is not there yet.

    Raises:
        StoreError: it is a link or a file.
    """
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise StoreError(
            f"{folder} is a link or a file where a folder of the store belongs: writing would leave the store; "
            f"put a folder there"
        )


def _remove_temporaries(folder: Path, mine: np.ndarray | None) -> None:
    """Remove the temporary files of a folder; with `mine`, of those chunks only: others may be at work."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if is_temporary(entry.name):
            chunk = entry.name.split(".")[1]
            if mine is None or (chunk.isdecimal() and int(chunk) < len(mine) and mine[int(chunk)]):
                entry.unlink(missing_ok=True)
