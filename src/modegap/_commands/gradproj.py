"""`modegap gradproj MODEL STORE MODES`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.gradproj.config import GradprojConfig

from .replaying import keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.gradproj import GradprojResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is differentiated, on which modes, and where the result goes.

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


CONFIGS = (Inputs, GradprojConfig)


def run(inputs: Inputs, config: GradprojConfig, console: Console) -> GradprojResult:
    """Projections of the decoder's gradients on the modes."""
    from modegap.analyses.gradproj import gradproj

    with console.progress("gradproj", unit="samples") as advance:
        result = gradproj(load_model(inputs), inputs.store, inputs.modes, config, progress=advance)
    keep(result, inputs.out, console, "gradproj")
    return result
