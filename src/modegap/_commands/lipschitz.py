"""`modegap lipschitz MODEL STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.lipschitz.config import LipschitzConfig

from .clustering import ClusterOptions, model_for, workers
from .replaying import ReplayInputs, keep

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.lipschitz import LipschitzResult


@dataclass(frozen=True, slots=True)
class Inputs(ReplayInputs):
    """What is differentiated, and where the results go.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        store: store with token rows of adapter_output (or text_embedding).
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
        modes: file that `align --out` wrote: take `gradproj` from the same pass.
        gradproj_out: JSON file for the result of `gradproj`; needs `modes`.
    """

    modes: str | None = None
    gradproj_out: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for one of `modes` and `gradproj_out` without the other."""
        if (self.modes is None) != (self.gradproj_out is None):
            raise ValueError("modes and gradproj_out go together: give both, or run modegap gradproj")


CONFIGS = (Inputs, LipschitzConfig, ClusterOptions)


def run(
    inputs: Inputs, config: LipschitzConfig, options: ClusterOptions, console: Console
) -> LipschitzResult:
    """Per-sample gradient norms of the decoder's log-likelihood."""
    with workers(options, inputs.out, console) as cluster:
        loaded = model_for(inputs, cluster)
        with console.progress("lipschitz", unit="batches" if cluster else "samples") as advance:
            if inputs.modes is None:
                from modegap.analyses.lipschitz import lipschitz

                result = lipschitz(loaded, inputs.store, config, progress=advance)
            else:
                from modegap.analyses.gradproj import gradients

                result, projected = gradients(loaded, inputs.store, inputs.modes, config, progress=advance)
                keep(projected, inputs.gradproj_out, console, "gradproj")
        keep(result, inputs.out, console, "lipschitz")
    return result
