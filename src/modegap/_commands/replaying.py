"""What the commands that replay a store through a decoder have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.models import LoadedModel


@dataclass(frozen=True, slots=True)
class ReplayInputs:
    """The model whose decoder is replayed, the store, and where the result goes.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned.
        store: store with token rows of adapter_output (or text_embedding).
        out: JSON file for the result, which `report` reads; nothing is written unless given.
        dtype: dtype of the model; the checkpoint's own unless given.
        revision: of the model.
        device_map: as transformers takes it.
        trust_remote_code: run the model repository's own code.
    """

    model: str
    store: str
    out: str | None = None
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class ModesInputs:
    """What is replayed, with which modes, and where the result goes.

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


def load_model(inputs: Any) -> LoadedModel:
    """The model that the inputs name."""
    from modegap._facade import load

    return load(
        inputs.model,
        dtype=inputs.dtype,
        device_map=inputs.device_map,
        revision=inputs.revision,
        trust_remote_code=inputs.trust_remote_code,
    )


def is_store(path: str) -> bool:
    """Whether a path or URL names a store rather than a data set."""
    from pathlib import Path

    return "://" in path or (Path(path) / "zarr.json").is_file()


def keep(result: Any, out: str | None, console: Console, name: str) -> None:
    """Save a result where asked for."""
    if out is None:
        return
    from modegap.analyses.saved import save_result

    save_result(result, out)
    console.say(f"{name}: {out}")
