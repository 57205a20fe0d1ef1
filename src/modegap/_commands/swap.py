"""`modegap swap MODEL STORE MODES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modegap.analyses.swap.config import SwapConfig

from .replaying import ModesInputs, keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.swap import SwapResult


CONFIGS = (ModesInputs, SwapConfig)


def run(inputs: ModesInputs, config: SwapConfig, console: Console) -> SwapResult:
    """What the decoder notices of a swapped class component."""
    from modegap.analyses.swap import swap

    with console.progress("swap", unit="samples") as advance:
        result = swap(load_model(inputs), inputs.store, inputs.modes, config, progress=advance)
    keep(result, inputs.out, console, "swap")
    return result
