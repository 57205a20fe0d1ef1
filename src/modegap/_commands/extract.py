"""`modegap extract MODEL DATASET STORE --points ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modegap.engine.capture.config import ExtractConfig as Config

from . import info
from .data import DataOptions, open_data
from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console

CONFIGS = (Config, DataOptions)


def run(config: Config, options: DataOptions, console: Console) -> Output:
    """Capture into the store, going on where an earlier run was stopped; shows what the store then holds."""
    from modegap._facade import load
    from modegap.engine.capture import extract, extract_moments
    from modegap.engine.plan import check_weights

    # Texts need no media: those of the data set may lie on another machine.
    data = open_data(config.dataset, options, keep_missing=config.as_text or config.skip_bad)
    loaded = None
    if not config.stream_layers:  # there the layers are never in memory together
        if config.preflight and config.model.partition(":")[0] != "lab":
            check_weights(config)
        loaded = load(
            config.model,
            dtype=config.dtype,
            device_map=config.device_map,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            points=config.module,
        )
    with console.progress("capture", unit="samples") as advance:
        made = (extract if config.stored else extract_moments)(
            config,
            model=loaded,
            data=data,
            progress=lambda phase, done, total: advance(done, total, label=phase),
        )
    return info.run(info.Config(str(made.path)), console)
