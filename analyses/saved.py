"""Results on disk: every field of a frozen result as strict JSON, read back as the same result."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modegap.stores.durable import replaced

from .ablate import AblationResult
from .align import Modes
from .bound import BoundResult
from .distance import DistanceResult
from .gmi import GmiResult
from .gradproj import GradprojResult
from .lipschitz import LipschitzResult
from .lora import LoraResult
from .pertype import PertypeResult
from .probe import ProbeResult
from .result import Json, jsonable
from .swap import SwapResult

FORMAT = "modegap.result/1"
Saved = (
    Modes
    | AblationResult
    | ProbeResult
    | DistanceResult
    | PertypeResult
    | LipschitzResult
    | GradprojResult
    | SwapResult
    | GmiResult
    | BoundResult
    | LoraResult
)
_KINDS: dict[str, type[Any]] = {
    "ablate": AblationResult,
    "bound": BoundResult,
    "distance": DistanceResult,
    "gmi": GmiResult,
    "gradproj": GradprojResult,
    "lipschitz": LipschitzResult,
    "lora": LoraResult,
    "pertype": PertypeResult,
    "probe": ProbeResult,
    "swap": SwapResult,
}


def save_result(result: Saved, path: str | Path) -> Path:
    """Write a result, replacing the file atomically; modes as safetensors, everything else as JSON.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    if isinstance(result, Modes):
        return result.save(path)
    kind = next(name for name, cls in _KINDS.items() if isinstance(result, cls))
    text = json.dumps({"format": FORMAT, "kind": kind, "result": jsonable(_fields(result))}, allow_nan=False)
    with replaced(path) as aside:
        aside.write_text(text)
    return path


def load_result(path: str | Path) -> Saved:
    """The result that `save_result` wrote.

    Raises:
        ValueError: the file holds no result of this version; the message says what it holds.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return Modes.load(path)
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"{path}: expected a {FORMAT} file, got {content['format']!r}")
        cls = _KINDS[content["kind"]]
        result: Saved = decode(cls, content["result"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a saved result ({error!r}); run the analysis again with --out"
        ) from error
    return result


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def decode(hint: Any, value: Json) -> Any:
    """`value`, as `jsonable` wrote it, as the annotated type `hint`: null is NaN where a number is due."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object for {hint.__name__}, got {type(value).__name__}")
        hints = typing.get_type_hints(hint, localns=_names())
        return hint(**{name: decode(hints[name], item) for name, item in value.items()})
    if origin is np.ndarray:
        dtype = typing.get_args(args[1])[0]
        filled = [math.nan if item is None else item for item in typing.cast("list[Any]", value)]
        return np.asarray(filled, dtype=dtype)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else decode(next(arg for arg in args if arg is not type(None)), value)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        return tuple(decode(kind, item) for kind, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, list):
        return tuple(decode(args[0], item) for item in value)
    if hint is float:
        return math.nan if value is None else float(typing.cast("float", value))
    return value


def _names() -> dict[str, Any]:
    """Names that the result modules import for type checkers only."""
    from modegap.engine.certificate import Certificate

    return {"Certificate": Certificate}
