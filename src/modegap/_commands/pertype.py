"""`modegap pertype STORE MODES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.pertype.config import PertypeConfig

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.pertype import PertypeResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is analysed, and where the result goes.

    Attributes:
        store: modal store with labels.
        modes: file that `align --out` wrote.
        probes: file that `probe --out` wrote, for the degradation.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        device: where rows are reduced, for example `cuda`; the host unless given.
    """

    store: str
    modes: str
    probes: str | None = None
    out: str | None = None
    device: str | None = None


CONFIGS = (Inputs, PertypeConfig)


def run(inputs: Inputs, config: PertypeConfig, console: Console) -> PertypeResult:
    """In which modes the classes of each label differ."""
    from modegap.analyses.pertype import pertype
    from modegap.analyses.saved import save_result

    with console.progress("pertype") as advance:
        result = pertype(
            inputs.store, inputs.modes, inputs.probes, config, device=inputs.device, progress=advance
        )
    if inputs.out is not None:
        save_result(result, inputs.out)
        console.say(f"per-type analysis: {inputs.out}")
    return result
