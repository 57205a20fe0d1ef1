"""`modegap inspect MODEL`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modegap.analyses.table import Table

from .output import Output

if TYPE_CHECKING:
    from modegap._console import Console


@dataclass(frozen=True, slots=True)
class Config:
    """Which model.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned, lab:text.
        revision: of the model.
        trust_remote_code: run the model repository's own code.
        module: hook points of your own, name to `module.path` or `module.path:input`.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    module: dict[str, str] = field(default_factory=dict)


CONFIGS = (Config,)


def run(config: Config, console: Console) -> Output:
    """Hook points, the modules they resolved to, and why."""
    from modegap._facade import load
    from modegap.engine.models import describe

    loaded = load(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        points=config.module,
    )
    found = describe(loaded)
    rows = [(one["point"], one["module"], one["class"], one["takes"], one["why"]) for one in found]
    notes = [f"{loaded.family}, takes {loaded.modality}, hidden size {loaded.hidden_size}"]
    table = Table(loaded.name, ["hook point", "module", "class", "takes", "why"], rows, notes)
    return Output(
        [table], {"model": loaded.name, "family": loaded.family, "modality": loaded.modality, "points": found}
    )
