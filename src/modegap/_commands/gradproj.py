"""`modegap gradproj MODEL STORE MODES`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modegap.analyses.gradproj.config import GradprojConfig

from .replaying import ModesInputs, keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.gradproj import GradprojResult


CONFIGS = (ModesInputs, GradprojConfig)


def run(inputs: ModesInputs, config: GradprojConfig, console: Console) -> GradprojResult:
    """Projections of the decoder's gradients on the modes."""
    from modegap.analyses.gradproj import gradproj

    with console.progress("gradproj", unit="samples") as advance:
        result = gradproj(load_model(inputs), inputs.store, inputs.modes, config, progress=advance)
    keep(result, inputs.out, console, "gradproj")
    return result
