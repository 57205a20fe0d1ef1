"""The weights of a checkpoint by the names that the model gives them, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from modegap.engine.errors import EngineError

_INDEX = "model.safetensors.index.json"


class CheckpointFiles:
    """The safetensors files of a folder; use it as a context manager, which closes them.

    Parameter names in files and in models differ by their leading parts (`language_model.model.layers.0` here,
    `model.language_model.layers.0` there), and transformers' versions differ in how. A name stands for the
    key that shares its longest tail, of several the one that shares most of the rest; shapes must agree.

    Attributes:
        keys: key to file.
    """

    def __init__(self, folder: Path) -> None:
        """Reads names and places, no weights.

        Raises:
            EngineError: no safetensors files, or one that the index names is missing.
        """
        self.folder = folder
        self.keys = _keys(folder)
        self._tails: dict[str, list[str]] = {}
        for key in self.keys:
            parts = key.split(".")
            for at in range(len(parts)):
                self._tails.setdefault(".".join(parts[at:]), []).append(key)
        self._open: dict[Path, Any] = {}
        self.reads = 0

    def __enter__(self) -> Self:
        """The files."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes them."""
        self._open.clear()

    def find(self, name: str) -> str | None:
        """The key of a parameter; None where no key has its last part or two fit equally well."""
        parts = name.split(".")
        for at in range(len(parts)):
            tail = ".".join(parts[at:])
            found = self._tails.get(tail)
            if found:
                return _nearest(found, set(parts[:at]), tail)
        return None

    def plan(self, wanted: Mapping[str, torch.Size]) -> dict[str, str]:
        """Parameter name to key, for parameters of given shapes.

        Raises:
            EngineError: a parameter without a key, a key for two of them, or another shape; names it.
        """
        found: dict[str, str] = {}
        for name, shape in wanted.items():
            key = self.find(name)
            if key is None:
                raise EngineError(
                    f"{self.folder} stores {name} in no form that can be streamed layer by layer; load the "
                    'model with device_map="auto" instead'
                )
            theirs = torch.Size(self._handle(key).get_slice(key).get_shape())
            if theirs != shape:
                raise EngineError(
                    f"{self.folder}: {key} has shape {list(theirs)}, {name} needs {list(shape)}; load the model "
                    'with device_map="auto" instead'
                )
            found[name] = key
        twice = _repeated(found)
        if twice is not None:
            raise EngineError(
                f"{self.folder}: {twice[0]} and {twice[1]} both come from {found[twice[0]]}; load the model with "
                'device_map="auto" instead'
            )
        return found

    def read(self, key: str) -> torch.Tensor:
        """A tensor, as a view of the mapped file: its bytes are read when they are first touched."""
        self.reads += 1
        tensor: torch.Tensor = self._handle(key).get_tensor(key)
        return tensor

    def _handle(self, key: str) -> Any:
        from safetensors import SafetensorError, safe_open

        file = self.keys[key]
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise EngineError(f"{file} cannot be read ({error}); download it again") from error
        return self._open[file]


def _keys(folder: Path) -> dict[str, Path]:
    from safetensors import SafetensorError, safe_open

    index = folder / _INDEX
    if index.is_file():
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        missing = next((name for name in sorted(set(placed.values())) if not (folder / name).is_file()), None)
        if missing is not None:
            raise EngineError(
                f"{folder / missing} is missing, which {_INDEX} names; download the model again"
            )
        return {key: folder / name for key, name in placed.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EngineError(
            f"{folder} has no safetensors files, which layer streaming maps into memory; convert the checkpoint "
            "with save_pretrained, or choose a revision that has them"
        )
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except SafetensorError as error:
            raise EngineError(f"{file} cannot be read ({error}); download it again") from error
    return found


def _nearest(keys: list[str], rest: set[str], tail: str) -> str | None:
    shared = [len(rest & set(key.removesuffix(tail).split("."))) for key in keys]
    best = max(shared)
    return keys[shared.index(best)] if shared.count(best) == 1 else None


def _repeated(found: Mapping[str, str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for name, key in found.items():
        if key in seen:
            return seen[key], name
        seen[key] = name
    return None


def parameters_of(
    model: torch.nn.Module, *, inside: Iterable[str] = (), outside: Iterable[str] = ()
) -> dict[str, torch.nn.Parameter]:
    """Parameters by name, shared ones once: those inside one of the modules, or outside all of them."""
    inside, outside = tuple(inside), tuple(outside)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if (not inside or _within(name, inside)) and not _within(name, outside)
    }


def _within(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
