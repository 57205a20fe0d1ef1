"""`modegap align MODAL TEXT`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modegap.analyses.align.config import AlignConfig

from .clustering import ClusterOptions, workers

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.analyses.align import Modes


@dataclass(frozen=True, slots=True)
class Stores:
    """Which stores, and where the result goes.

    Attributes:
        modal: store of the model fed with media.
        text: store of the decoder fed with text.
        out: safetensors file for the modes, which `ablate` and `report` read; nothing is written unless given.
        device: where the covariances are accumulated, for example `cuda`; the host unless given.
    """

    modal: str
    text: str
    out: str | None = None
    device: str | None = None


CONFIGS = (Stores, AlignConfig, ClusterOptions)


def run(stores: Stores, config: AlignConfig, options: ClusterOptions, console: Console) -> Modes:
    """The modes of the modal rows and their alignment with the text rows."""
    from modegap.analyses.align import align
    from modegap.analyses.saved import save_result

    with workers(options, stores.out, console) as cluster:
        with console.progress("align") as advance:
            modes = align(
                stores.modal, stores.text, config, device=stores.device, progress=advance, cluster=cluster
            )
        if stores.out is not None:
            save_result(modes, stores.out)
            console.say(f"modes: {stores.out}")
    return modes
