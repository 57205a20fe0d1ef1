"""Finding the parts of a published data set under the folder the user named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modegap.engine.errors import EngineError


def find(candidates: Iterable[Path], name: str, root: Path, expected: str) -> Path:
    """The first of the paths that exists.

    Raises:
        EngineError: none does; says what the root should hold.
    """
    for path in candidates:
        if path.exists():
            return path
    if not root.is_dir():
        raise EngineError(f"{name}: there is no folder {root}; root= is the folder that holds {expected}")
    there = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    listed = ", ".join(there[:6]) + ", ..." * (len(there) > 6)
    raise EngineError(
        f"{name}: {root} does not hold {expected} (it holds {listed or 'nothing'}); correct root="
    )


def read_json(path: Path, name: str) -> Any:
    """A JSON file's content.

    Raises:
        EngineError: it is not JSON, as after a download cut short.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise EngineError(f"{name}: {path} is not JSON ({error}); download it again") from error


def need(condition: bool, message: str) -> None:
    """Raises EngineError with the message unless the condition holds."""
    if not condition:
        raise EngineError(message)
