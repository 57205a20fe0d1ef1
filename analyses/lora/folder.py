"""The folder of an intervention: whose it is, and how it is emptied for another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modegap.stores.durable import replaced

from .outcome import CONTROL, LABEL

HELD_OUT, STORE = "held_out.zarr", "store.zarr"
SPLIT = "training/split.json"
_RUN = "training/run.json"
_ARMS = (LABEL, CONTROL)


class OtherRunError(ValueError):
    """What lies in a folder was made with other arguments.

    Attributes:
        differ: which.
    """

    def __init__(self, what: str | Path, differ: Sequence[str], said: str) -> None:
        """Say what differs and where."""
        super().__init__(f"{what} {said} ({', '.join(differ)} differ); give another folder, or remove it")
        self.differ = tuple(differ)


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Note in a folder which run it is of, by the facts that decide what is written there.

    Raises:
        OtherRunError: it is another one's.
    """
    facts = json.loads(json.dumps(facts))
    path = folder / _RUN
    if not path.exists():
        write_json(path, facts)
        return
    known = json.loads(path.read_text())
    differ = sorted(name for name in {*known, *facts} if known.get(name) != facts.get(name))
    if differ:
        raise OtherRunError(folder, differ, "holds another run")


def empty(folder: Path, differ: Sequence[str]) -> None:
    """Remove what a run with other arguments left: only the captured stores where only their hook points differ.

    The note whose run it was goes last, so that a kill in between leaves a folder that is still another run's.
    """
    stores = [folder / HELD_OUT, *(folder / arm / STORE for arm in _ARMS)]
    captured = tuple(differ) == ("points",)
    for path in stores if captured else [*stores, *(folder / arm for arm in _ARMS)]:
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            raise OSError(f"{path} cannot be removed; remove it, or give another folder")
    if not captured:
        (folder / SPLIT).unlink(missing_ok=True)
    (folder / _RUN).unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of JSON, replacing it atomically."""
    with replaced(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n")
