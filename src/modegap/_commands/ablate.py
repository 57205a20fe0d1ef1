"""`modegap ablate MODEL DATA MODES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.ablate.config import AblateConfig

from .clustering import ClusterOptions, model_for, workers
from .data import LimitedDataOptions, open_data
from .replaying import is_store, keep

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.ablate import AblationResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is ablated, and where the result goes.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        data: a store with token rows of adapter_output (the decoder alone is replayed), or a data set of media
            (name, folder, CSV or JSONL file, hf:org/name, `lab`; the whole model runs and reaches every hook
            point).
        modes: file that `align --out` wrote.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
    """

    model: str
    data: str
    modes: str
    out: str | None = None
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


CONFIGS = (Inputs, AblateConfig, LimitedDataOptions, ClusterOptions)


def run(
    inputs: Inputs,
    config: AblateConfig,
    options: LimitedDataOptions,
    clustering: ClusterOptions,
    console: Console,
) -> AblationResult:
    """Change of the decoder's loss without subsets of the modes."""
    from modegap.analyses.ablate import ablate

    data = inputs.data if is_store(inputs.data) else open_data(inputs.data, options)
    with workers(clustering, inputs.out, console) as cluster:
        loaded = model_for(inputs, cluster)
        with console.progress("ablate", unit="batches" if cluster else "steps") as advance:
            result = ablate(loaded, data, inputs.modes, config=config, progress=advance)
        keep(result, inputs.out, console, "ablation")
    return result
