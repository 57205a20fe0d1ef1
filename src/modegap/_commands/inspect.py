"""`modegap inspect MODEL`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modegap.analyses.table import Table

from .output import Output, count

if TYPE_CHECKING:
    from modegap._console import Console
    from modegap.engine.models import Branch, LoadedModel


@dataclass(frozen=True, slots=True)
class Config:
    """Which model.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned, lab:text.
        revision: of the model.
        trust_remote_code: run the model repository's own code.
        module: hook points of your own, name to `module.path`, `module.path:input` or `module.path:placeholders`.
        depth: levels of the module tree to print; deeper where hook points are.
        run: load the weights, run one generated sample, and check the hook points on it.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    module: dict[str, str] = field(default_factory=dict)
    depth: int = 3
    run: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a depth that shows nothing."""
        if self.depth < 1:
            raise ValueError(f"got depth {self.depth}; expected at least 1")


CONFIGS = (Config,)
_VERDICTS = {True: "yes", False: "no", None: "does not apply"}


def run(config: Config, console: Console) -> Output:
    """The module tree, the hook points found in it and why; with `run`, what one sample showed."""
    from modegap.engine.models import describe, outline, trial

    loaded = _load(config)
    found, tree = describe(loaded), outline(loaded, config.depth)
    tried = trial(loaded) if config.run else None
    notes = [f"{loaded.family}, takes {loaded.modality}, hidden size {loaded.hidden_size}"]
    entry = loaded.replay
    if entry is not None and loaded.modality != "text":
        notes.append(
            f"replay: {entry.unsupported or 'adapter rows go to the placeholders of ' + entry.decoder}"
        )
    points = [(one["point"], f"{one['takes']} of {one['module']}", one["why"]) for one in found]
    tables = [
        Table(f"{loaded.name}: modules", ["module", "values", "what it is"], [_line(one) for one in tree]),
        Table(f"{loaded.name}: hook points", ["hook point", "tensor", "why"], points, notes),
    ]
    data: dict[str, Any] = {
        "model": loaded.name,
        "family": loaded.family,
        "modality": loaded.modality,
        "points": found,
        "tree": [asdict(one) for one in tree],
        "replay": None if entry is None else asdict(entry),
    }
    if tried is not None:
        shapes = [(name, " x ".join(map(str, shape))) for name, shape in tried.shapes.items()]
        tables.append(Table("one generated sample", ["hook point", "shape"], shapes))
        checks = [(one.name, _VERDICTS[one.passed], one.found) for one in tried.checks]
        tables.append(Table("checks on it", ["check", "holds", "found"], checks))
        data["trial"] = asdict(tried)
    failed = tried is not None and any(one.passed is False for one in tried.checks)
    return Output(tables, data, exit_code=int(failed))


def _line(branch: Branch) -> tuple[str, str, str]:
    """Indented name and class, values in it, and hook points with the reason."""
    name = branch.path.split(" ")[0].rpartition(".")[2] + "".join(branch.path.partition(" ")[1:])
    points = f"<- {', '.join(branch.points)}" if branch.points else ""
    told = "; ".join(part for part in (points, branch.note) if part)
    return f"{'  ' * branch.depth}{name} ({branch.kind})", count(branch.parameters), told


def _load(config: Config) -> LoadedModel:
    from modegap._facade import load
    from modegap.engine.models import skeleton

    lab = config.model.partition(":")[0] == "lab"
    open_model: Callable[..., LoadedModel] = load if config.run or lab else skeleton
    return open_model(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        points=config.module,
    )
