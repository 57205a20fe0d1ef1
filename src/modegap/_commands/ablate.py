"""`modegap ablate MODEL DATASET MODES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.ablate.config import AblateConfig

from .data import LimitedDataOptions, open_data

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.ablate import AblationResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is ablated, and where the result goes.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        dataset: name, folder, CSV or JSONL file, hf:org/name, or `lab`.
        modes: file that `align --out` wrote.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
    """

    model: str
    dataset: str
    modes: str
    out: str | None = None
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


CONFIGS = (Inputs, AblateConfig, LimitedDataOptions)


def run(
    inputs: Inputs, config: AblateConfig, options: LimitedDataOptions, console: Console
) -> AblationResult:
    """Change of the decoder's loss without subsets of the modes."""
    from modegap._facade import load
    from modegap.analyses.ablate import ablate
    from modegap.analyses.saved import save_result

    data = open_data(inputs.dataset, options)
    loaded = load(
        inputs.model,
        dtype=inputs.dtype,
        device_map=inputs.device_map,
        revision=inputs.revision,
        trust_remote_code=inputs.trust_remote_code,
    )
    with console.progress("ablate", unit="passes") as advance:
        result = ablate(loaded, data, inputs.modes, config=config, progress=advance)
    if inputs.out is not None:
        save_result(result, inputs.out)
        console.say(f"ablation: {inputs.out}")
    return result
