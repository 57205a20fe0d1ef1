"""A reduction's state in a file, so that a killed pass goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modegap.stores.durable import replaced

from .errors import EngineError
from .reduction import Reduction

_FORMAT = "modegap-reduction-1"
_JOIN = "/"


class Checkpoint:
    """One safetensors file: the state's tensors, the next row, and what the pass is of.

    Args:
        path: the file.
        facts: what must agree when a pass is continued.
        seconds: least time between two saves.
    """

    def __init__(self, path: Path, facts: Mapping[str, str], seconds: float) -> None:
        """Nothing is read or written yet."""
        self._path, self._facts, self._seconds = path, dict(facts), seconds
        self._last = time.monotonic()

    def due(self, now: float) -> bool:
        """Whether it is time to save."""
        return now - self._last >= self._seconds

    def resume(self, reduction: Reduction[Any, Any], start: int) -> int:
        """Load the file into `reduction` if there is one; returns the row to go on from.

        Raises:
            EngineError: the file is of another pass, or is no checkpoint.
        """
        if not self._path.exists():
            return start
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT:
                    raise EngineError(f"{self._path} is not a checkpoint of a reduction: give another path")
                facts = json.loads(header["facts"])
                differ = [name for name in self._facts if facts.get(name) != self._facts[name]]
                if differ:
                    raise EngineError(
                        f"{self._path} is the checkpoint of another pass ({', '.join(differ)} differ): "
                        "remove it, or give another path"
                    )
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise EngineError(f"{self._path} cannot be read as a checkpoint ({error}): remove it") from error
        reduction.load_state_dict(_nested(state))
        return int(header["next_row"])

    def save(self, reduction: Reduction[Any, Any], next_row: int) -> None:
        """Replace the file by the state now: written aside, synced, renamed."""
        metadata = {"format": _FORMAT, "facts": json.dumps(self._facts), "next_row": str(next_row)}
        write_tensors(self._path, _flat(reduction.state_dict()), metadata)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the file: the pass is complete."""
        self._path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Replace a safetensors file atomically: written aside, synced, renamed."""
    from safetensors.torch import save_file

    with replaced(path) as aside:
        save_file(dict(tensors), aside, metadata=dict(metadata))


def _flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}{_JOIN}")
        else:
            tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            out[prefix + name] = tensor.detach().cpu().contiguous()
    return out


def _nested(flat: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, tensor in flat.items():
        *folders, leaf = name.split(_JOIN)
        place = out
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = tensor
    return out
