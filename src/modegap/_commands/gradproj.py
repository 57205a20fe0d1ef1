"""`modegap gradproj MODEL STORE MODES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modegap.analyses.gradproj.config import GradprojConfig

from .clustering import ClusterOptions, model_for, workers
from .replaying import ModesInputs, keep

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.gradproj import GradprojResult


CONFIGS = (ModesInputs, GradprojConfig, ClusterOptions)


def run(
    inputs: ModesInputs, config: GradprojConfig, options: ClusterOptions, console: Console
) -> GradprojResult:
    """Projections of the decoder's gradients on the modes."""
    from modegap.analyses.gradproj import gradproj

    with workers(options, inputs.out, console) as cluster:
        model = model_for(inputs, cluster)
        with console.progress("gradproj", unit="batches" if cluster else "samples") as advance:
            result = gradproj(model, inputs.store, inputs.modes, config, progress=advance)
        keep(result, inputs.out, console, "gradproj")
    return result
