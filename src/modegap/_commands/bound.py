"""`modegap bound STORE TEXT LIPSCHITZ`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modegap.analyses.bound.config import BoundConfig

from .replaying import keep

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.bound import BoundResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the bounds are made of, and where the result goes.

    Attributes:
        store: modal store.
        text: text store of the same decoder.
        lipschitz: file that `lipschitz --out` wrote.
        gmi: file that `gmi --text ... --out` wrote, for the measured gap.
        others: files that `bound --out` wrote for other models and data sets, to be ranked together.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
    """

    store: str
    text: str
    lipschitz: str
    gmi: str | None = None
    others: Sequence[str] = ()
    out: str | None = None


CONFIGS = (Inputs, BoundConfig)


def run(inputs: Inputs, config: BoundConfig, console: Console) -> BoundResult:
    """Theorems 2 and 3 beside the measured gap."""
    from modegap.analyses.bound import BoundResult, bound
    from modegap.analyses.gmi import GmiResult
    from modegap.analyses.lipschitz import LipschitzResult

    norms = _loaded(inputs.lipschitz, LipschitzResult, "lipschitz")
    measured = None if inputs.gmi is None else _loaded(inputs.gmi, GmiResult, "gmi")
    others = [_loaded(path, BoundResult, "bound") for path in inputs.others]
    result = bound(inputs.store, inputs.text, norms, measured, others, config)
    keep(result, inputs.out, console, "bound")
    return result


def _loaded(path: str, kind: type, name: str) -> Any:
    from modegap.analyses.saved import load_result

    result = load_result(path)
    if not isinstance(result, kind):
        raise ValueError(f"{path} holds a {type(result).__name__}; give the file of modegap {name} --out")
    return result
