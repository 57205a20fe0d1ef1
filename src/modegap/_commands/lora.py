"""`modegap lora MODEL STORE LABEL OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.lora.config import LoraConfig

from .replaying import keep, load_model

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.lora import LoraResult


@dataclass(frozen=True, slots=True)
class Inputs:
    """The model whose decoder is trained, the store, the label, and the folder for everything that is made.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        store: store with token rows of adapter_output.
        label: label column to train for.
        out: folder for the split, adapters, stores and lora.json, which `report` reads; resumed where it is there.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
    """

    model: str
    store: str
    label: str
    out: str
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


CONFIGS = (Inputs, LoraConfig)


def run(inputs: Inputs, config: LoraConfig, console: Console) -> LoraResult:
    """Train, measure before and after, and keep the result."""
    from pathlib import Path

    from modegap.analyses.lora import lora

    with console.progress("lora", unit="samples") as advance:
        result = lora(
            load_model(inputs),
            inputs.store,
            inputs.label,
            inputs.out,
            config,
            progress=lambda what, done, total: advance(done, total, label=what),
        )
    keep(result, str(Path(inputs.out) / "lora.json"), console, "lora")
    return result
