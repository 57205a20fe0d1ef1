"""Which weights a folder holds: a Hub id has a commit for that, a folder has only what is in it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from modegap.stores.origin import sha256

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_BLOCK = 4096
_BLOCKS = 256
"""Blocks of a file that are read: a digest of all of a 70B model would take minutes."""


def weights_digest(name: str) -> str | None:
    """Return the SHA-256 of names, sizes and blocks (evenly spread, at most 1 MiB a file) of a folder's weights.

    None where `name` is no folder, or one without weights. Training changes all of a tensor, so that weights which
    were trained on differ in it; one that a few values of a large file were changed in by hand may not.

    Raises:
        OSError: a file cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        return None
    found = [file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES and file.is_file()]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
    return _digest(tuple(stats)) if stats else None


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of files by path, size and time of their last change: an experiment asks once a cell."""
    parts: list[bytes] = []
    for path, size, _ in files:
        parts.append(f"{Path(path).name} {size}\n".encode())
        with Path(path).open("rb") as opened:
            last = max(size - _BLOCK, 0)
            for place in sorted({last * k // (_BLOCKS - 1) for k in range(_BLOCKS)}):
                opened.seek(place)
                parts.append(opened.read(_BLOCK))
    return sha256(*parts)
