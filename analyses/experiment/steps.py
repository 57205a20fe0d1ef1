"""How each kind of cell is computed: the same functions that the commands call."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modegap.analyses.saved import load_result, save_result
from modegap.stores.durable import replaced

from .cells import Cell
from .config import Experiment

if TYPE_CHECKING:
    from modegap.engine.cluster import Cluster, Replicas
    from modegap.engine.datasets import Dataset
    from modegap.engine.models import LoadedModel

Step = Callable[[str, int, int], None]
Load = Callable[..., "LoadedModel"]
OpenData = Callable[..., "Dataset"]


@dataclass(frozen=True, slots=True)
class Partner:
    """A cell that can be computed with another one, and the files of its roles."""

    cell: Cell
    paths: dict[str, Path]


class Steps:
    """Computes cells, keeping the last loaded model.

    Args:
        experiment: what is run.
        load: id and options to a model, as `modegap.load`.
        open_data: data set and options to a data set, as `modegap.dataset`.
        step: called as `step(what, done, total)` while something runs.
        device: where reductions compute; None is the host.
        cluster: workers that share the passes, replays and probes; None is this process.
    """

    def __init__(
        self,
        experiment: Experiment,
        load: Load,
        open_data: OpenData,
        step: Step,
        device: str | None,
        cluster: Cluster | None = None,
    ) -> None:
        """Nothing loaded yet."""
        self.experiment, self._load, self._open, self._step = experiment, load, open_data, step
        self.out, self.device, self.cluster = Path(experiment.out), device, cluster
        self._loaded: tuple[str, LoadedModel] | None = None
        self.partner: Partner | None = None
        self.said: dict[str, str] = {}  # remarks on cells, by name
        self._ahead: dict[str, Any] = {}  # results that another cell's pass has made already

    def run(self, cell: Cell, paths: dict[str, Path]) -> None:
        """Compute a cell from the files of its roles and write its file."""
        target = self.out / cell.file
        target.parent.mkdir(parents=True, exist_ok=True)
        result = self._ahead.pop(cell.name, None)
        if result is None:
            result = getattr(self, f"_{cell.kind}")(cell, paths)
        if result is not None:
            save_result(result, target)

    def release(self) -> None:
        """Let go of the loaded model."""
        self._loaded = None

    def _model(self, name: str) -> LoadedModel:
        if self._loaded is None or self._loaded[0] != name:
            self.release()
            given, options = self._of(name)
            self._loaded = (name, self._load(*given, **options))
        return self._loaded[1]

    def _replayed(self, name: str) -> LoadedModel | Replicas:
        """The model of a replay: here, or on every worker."""
        if self.cluster is None:
            return self._model(name)
        self.release()
        return self.cluster.replicas(partial(self._load, *self._of(name)[0], **self._of(name)[1]))

    def _of(self, name: str) -> tuple[tuple[str], dict[str, Any]]:
        spec = self.experiment.models[name]
        module = spec.capture.get("module") or self.experiment.capture.get("module")
        options = {
            "dtype": spec.dtype,
            "revision": spec.revision,
            "device_map": spec.device_map,
            "trust_remote_code": spec.trust_remote_code,
            "points": module or None,
        }
        return (spec.model,), options

    def _data(self, name: str, **options: Any) -> Dataset:
        spec = self.experiment.datasets[name]
        return self._open(spec.dataset, **{**spec.options, **options})

    def _say(self, cell: Cell) -> Callable[..., None]:
        return lambda done, total, *_: self._step(cell.name, done, total)

    def _capture(self, cell: Cell, paths: dict[str, Path]) -> None:
        from dataclasses import replace

        from modegap.engine.capture import extract

        missing = cell.config.as_text or getattr(cell.config, "skip_bad", False)
        extract(
            replace(cell.config, store=str(self.out / cell.file)),
            model=self._model(cell.model),
            data=self._data(cell.dataset, keep_missing=missing),
            progress=lambda phase, done, total: self._step(f"{cell.name}: {phase}", done, total),
        )

    def _align(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.align import align

        say = self._say(cell)
        where: dict[str, Any] = {"device": self.device, "cluster": self.cluster}
        return align(paths["store"], paths["text"], cell.config, progress=say, **where)

    def _probe(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.probe import probe

        return probe(paths["store"], config=cell.config, progress=self._say(cell), cluster=self.cluster)

    def _distance(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.distance import distance

        say = self._say(cell)
        where: dict[str, Any] = {"device": self.device, "cluster": self.cluster}
        return distance(paths["store"], paths["text"], cell.config, progress=say, **where)

    def _pertype(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.pertype import pertype

        probes = paths.get("probe")
        say = self._say(cell)
        return pertype(paths["store"], paths["modes"], probes, cell.config, device=self.device, progress=say)

    def _lipschitz(self, cell: Cell, paths: dict[str, Path]) -> Any:
        model, say, partner = self._replayed(cell.model), self._say(cell), self.partner
        if partner is None or not _same_space(cell, paths["store"], partner.paths["modes"]):
            from modegap.analyses.lipschitz import lipschitz

            return lipschitz(model, paths["store"], cell.config, progress=say)
        from modegap.analyses.gradproj import gradients

        norms, projected = gradients(model, paths["store"], partner.paths["modes"], cell.config, progress=say)
        # written when its turn comes: a run that ends before then computes it again
        self._ahead[partner.cell.name] = projected
        self.said[partner.cell.name] = f"from the pass of {cell.name}"
        return norms

    def _gradproj(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.gradproj import gradproj

        model, say = self._replayed(cell.model), self._say(cell)
        return gradproj(model, paths["store"], paths["modes"], cell.config, progress=say)

    def _ablate(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.ablate import ablate

        model, say = self._replayed(cell.model), self._say(cell)
        return ablate(model, paths["store"], paths["modes"], config=cell.config, progress=say)

    def _swap(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.swap import swap

        model, say = self._model(cell.model), self._say(cell)
        return swap(model, paths["store"], paths["modes"], cell.config, progress=say)

    def _gmi(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.gmi import gmi

        model, say = self._model(cell.model), self._say(cell)
        return gmi(model, paths["store"], paths["text"], cell.config, progress=say)

    def _bound(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.bound import bound

        norms: Any = load_result(paths["lipschitz"])
        measured: Any = load_result(paths["gmi"]) if "gmi" in paths else None
        return bound(paths["store"], paths["text"], norms, measured, (), cell.config)

    def _lora(self, cell: Cell, paths: dict[str, Path]) -> Any:
        from modegap.analyses.lora import lora

        return lora(
            self._model(cell.model),
            paths["store"],
            cell.config.label,
            (self.out / cell.file).parent,
            cell.config.options(),
            replace=True,  # of a run with other options, or on rows that were captured again
            progress=lambda what, done, total: self._step(f"{cell.name}: {what}", done, total),
        )

    def _captions(self, cell: Cell, paths: dict[str, Path]) -> None:
        from modegap.analyses.lab.grammar import named_digits
        from modegap.analyses.lab.scoring import generate_captions

        loaded = self._model(cell.model)
        data = self._data(cell.dataset, limit=cell.config.samples)
        said = generate_captions(loaded.model, loaded.processor, data)
        digits = data.labels()["digit"]
        rows = [
            {"caption": caption, "correct": named_digits(caption) == [digit]}
            for caption, digit in zip(said, digits, strict=True)
        ]
        with replaced(self.out / cell.file) as aside:
            aside.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _same_space(cell: Cell, store: Path, modes: Path) -> bool:
    """Whether modes are as wide as the rows that a replay reads; where not, only the projections must fail."""
    from modegap.analyses.align import Modes
    from modegap.stores import ActivationStore

    points = ActivationStore.open(store).points
    point = cell.config.point or ("adapter_output" if "adapter_output" in points else "text_embedding")
    return point in points and points[point].width == Modes.load(modes).d
