"""`modegap gmi MODEL STORE`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.gmi.config import GmiConfig

from .replaying import ReplayInputs, keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.gmi import GmiResult


@dataclass(frozen=True, slots=True)
class Inputs(ReplayInputs):
    """The model whose decoder is scored, the stores of both laws, and where the result goes.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        store: modal store, with token rows of adapter_output.
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
        text: text store of the same decoder, with token rows of text_embedding.
    """

    text: str | None = None


CONFIGS = (Inputs, GmiConfig)


def run(inputs: Inputs, config: GmiConfig, console: Console) -> GmiResult:
    """What the decoder can use under each law, and of each label."""
    from modegap.analyses.gmi import gmi

    with console.progress("gmi", unit="samples") as advance:
        result = gmi(load_model(inputs), inputs.store, inputs.text, config, progress=advance)
    keep(result, inputs.out, console, "gmi")
    return result
