"""`modegap extract MODEL DATASET STORE --points ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modegap.engine.capture.config import ExtractConfig as Config

from . import info
from .data import DataOptions, open_data
from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.parallel import Ranks

CONFIGS = (Config, DataOptions)


def run(config: Config, options: DataOptions, console: Console) -> Output:
    """Capture into the store, going on where an earlier run was stopped; shows what the store then holds."""
    from modegap.engine.parallel import launched

    with launched() as ranks:
        return _extract(config, options, ranks, console)


def _extract(config: Config, options: DataOptions, ranks: Ranks | None, console: Console) -> Output:
    from modegap._facade import load
    from modegap.engine.capture import extract, extract_moments
    from modegap.engine.errors import EngineError
    from modegap.engine.plan import check_weights

    if ranks is not None and not config.stored:
        raise EngineError(
            "stats-only captures run in one process: store rows, and reduce them under torchrun"
        )
    # Texts need no media: those of the data set may lie on another machine.
    data = open_data(config.dataset, options, keep_missing=config.as_text or config.skip_bad)
    loaded = None
    if not config.stream_layers:  # there the layers are never in memory together
        if config.preflight and config.model.partition(":")[0] != "lab":
            check_weights(config)
        loaded = load(
            config.model,
            dtype=config.dtype,
            device_map=config.device_map or (own_device(ranks) if ranks else None),
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            points=config.module,
        )
    with console.progress("capture", unit="samples") as advance:
        given: dict[str, Any] = {
            "model": loaded,
            "data": data,
            "progress": lambda phase, done, total: advance(done, total, label=phase),
        }
        made = extract(config, ranks=ranks, **given) if config.stored else extract_moments(config, **given)
    return info.run(info.Config(str(made.path)), console)


def own_device(ranks: Ranks) -> str | None:
    """The GPU of this process; None on a machine without."""
    import torch

    return f"cuda:{ranks.local}" if torch.cuda.is_available() else None
