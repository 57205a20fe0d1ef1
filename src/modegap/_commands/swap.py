"""`modegap swap MODEL STORE MODES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.swap.config import SwapConfig

from .replaying import keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.swap import SwapResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is replayed, with which modes, and where the result goes.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        store: store with token rows of adapter_output.
        modes: file that `align --out` wrote.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
    """

    model: str
    store: str
    modes: str
    out: str | None = None
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


CONFIGS = (Inputs, SwapConfig)


def run(inputs: Inputs, config: SwapConfig, console: Console) -> SwapResult:
    """What the decoder notices of a swapped class component."""
    from modegap.analyses.swap import swap

    with console.progress("swap", unit="samples") as advance:
        result = swap(load_model(inputs), inputs.store, inputs.modes, config, progress=advance)
    keep(result, inputs.out, console, "swap")
    return result
