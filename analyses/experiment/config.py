"""An experiment as a YAML file: models x data sets x analyses."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from modegap._names import did_you_mean

_SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model.

    Attributes:
        model: Hub id, folder, or lab:plain, lab:aligned, lab:text.
        text: the model of the same file whose decoder reads the texts (the text law); None for a model that is
            itself the text law of others.
        dtype: of the weights; the checkpoint's own unless given.
        revision: of the weights.
        device_map: as transformers takes it.
        trust_remote_code: run the repository's own code.
        datasets: the data sets it is run on; all of its kind unless given.
        capture: options of `extract` for this model, over those of the experiment.
        analyses: options of analyses on this model, over those of the experiment and the data set; null leaves one out,
            and one that neither lists runs on this model only.
    """

    model: str
    text: str | None = None
    dtype: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    datasets: Sequence[str] | None = None
    capture: Mapping[str, Any] = field(default_factory=dict)
    analyses: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataSpec:
    """One data set.

    Attributes:
        dataset: as every command takes it: a name, folder, table, hf:org/name, `lab`.
        options: root, split, limit, labels, media, text, size, seed, as that kind of data set takes them.
        analyses: options of analyses on this data set, over those of the experiment; null leaves one out here, and one
            that the experiment does not list runs here only.
    """

    dataset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    analyses: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """What `modegap run` is asked to do.

    Attributes:
        name: short name.
        models: name to model; those with a `text` are studied, the others give the text law.
        datasets: name to data set.
        points: hook points captured of the studied models.
        text_points: hook points captured of the text models.
        capture: options of `extract` (rows, batch_size, ...).
        analyses: name of an analysis to its options; align (at several hook points), probe (with several poolings) and
            lora (for several labels) also take a list of them.
        title: heading of the report.
        about: prose on what is studied.
        out: folder of stores, results and report.
    """

    name: str
    models: Mapping[str, ModelSpec]
    datasets: Mapping[str, DataSpec]
    points: Sequence[str]
    text_points: Sequence[str] = ("text_embedding", "llm_final")
    capture: Mapping[str, Any] = field(default_factory=dict)
    analyses: Mapping[str, Any] = field(default_factory=dict)
    title: str = "Modality gap"
    about: str = ""
    out: str = ""

    def __post_init__(self) -> None:
        """Check that names refer to each other."""
        for name in (*self.models, *self.datasets):
            if not name or name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} names a folder of results; use letters, digits, - and _")
        for name, spec in self.models.items():
            _known(f"models.{name}.text", [spec.text] if spec.text else [], self.models)
            _known(f"models.{name}.datasets", spec.datasets or (), self.datasets)
            if spec.text and self.models[spec.text].text:
                raise ValueError(f"models.{name}.text: {spec.text} is itself studied against a text model")
        if not any(spec.text for spec in self.models.values()):
            raise ValueError("models: none has a `text`, the model that reads the texts; name it")

    def analyses_of(self, data: str, model: str) -> dict[str, Any]:
        """Name of every analysis of a model on a data set to its options there."""
        return _amended(_amended(self.analyses, self.datasets[data].analyses), self.models[model].analyses)

    def studied(self) -> dict[str, ModelSpec]:
        """The models with a text law."""
        return {name: spec for name, spec in self.models.items() if spec.text}


def shipped() -> dict[str, Path]:
    """Name to file of the experiments that come with modegap."""
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def load_experiment(path: str | Path, **changes: Any) -> Experiment:
    """The experiment of a YAML file, or of a shipped one by its name (`lab`, `paper`, `template`).

    Args:
        path: file or name.
        changes: fields to replace.

    Raises:
        ValueError: not YAML, an unknown key (with the nearest known one), a missing one, or names that refer to
            nothing.
        OSError: no such file.
    """
    known = shipped()
    file = known.get(str(path), Path(path))
    if not file.is_file():
        raise ValueError(f"no experiment {path}; give a YAML file, or one of {', '.join(known)}")
    try:
        given = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        said = "is empty" if given is None else f"holds {type(given).__name__}"
        raise ValueError(
            f"{file} {said}, expected keys such as models and datasets; `modegap run template --show` prints one"
        )
    given = {"name": file.stem, **given}
    models = {
        key: _build(ModelSpec, value, f"models.{key}")
        for key, value in _section(given, "models", file).items()
    }
    datasets = {
        key: _build(DataSpec, value, f"datasets.{key}")
        for key, value in _section(given, "datasets", file).items()
    }
    made: Experiment = _build(
        Experiment, {**given, "models": models, "datasets": datasets, **changes}, str(file)
    )
    return made if made.out else dataclasses.replace(made, out=f"modegap-{made.name}")


def _section(given: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    found = given.get(name)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file}: {name} must list at least one, name to its settings")
    return found


def _build(kind: type[Any], given: Any, where: str) -> Any:
    """A dataclass from a mapping.

    Raises:
        ValueError: not a mapping, an unknown key, a missing one or a value out of its range; names the place.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: got {given!r}, expected settings by name")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in given:
        if key not in fields:
            raise ValueError(
                f"{where}: unknown key {key!r}{did_you_mean(str(key), fields)}; known: {', '.join(fields)}"
            )
    for name, spec in fields.items():
        empty = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if empty and name not in given:
            raise ValueError(f"{where}: {name} is missing")
    try:
        return kind(**_typed(kind, given, where))
    except (TypeError, ValueError) as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from error


def _typed(kind: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values as the dataclass' annotations want them, lists as tuples.

    Raises:
        ValueError: a value of another type; names the place.
    """
    from jsonargparse import ArgumentError

    parsed: dict[str, Any] = {}
    for key, value in given.items():
        if _is_built(value):
            parsed[key] = value
            continue
        try:
            found = _parser(kind, key).parse_object({key: value})[key]
        except ArgumentError as error:
            hint = re.sub(r"<class '([^']+)'>|(?:collections\.abc|typing)\.", r"\1", str(_hints(kind)[key]))
            raise ValueError(f"{where}.{key}: got {value!r}, expected {hint}") from error
        parsed[key] = tuple(found) if isinstance(found, list) else found
    return parsed


@cache
def _parser(kind: Any, key: str) -> Any:
    """What brings a value into the type of a field, as the command line does."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=_hints(kind)[key])
    return parser


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_built(value: Any) -> bool:
    """Whether a value is a mapping of sections that were checked by themselves."""
    return isinstance(value, Mapping) and any(dataclasses.is_dataclass(one) for one in value.values())


def options_of(kind: type[Any], given: Any, where: str) -> Any:
    """The config dataclass of an analysis from its settings in the file; None stands for no settings.

    Raises:
        ValueError: as for every section of the file.
    """
    return _build(kind, {} if given is None else given, where)


def _amended(analyses: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Analyses with what a data set or a model says of them; null takes one out."""
    found = {kind: _over(given, own[kind]) if kind in own else given for kind, given in analyses.items()}
    found |= {kind: given for kind, given in own.items() if kind not in found}
    return {kind: given for kind, given in found.items() if kind not in own or own[kind] is not None}


def _over(base: Any, own: Any) -> Any:
    """The options of a data set or a model over those of the experiment, in each of several sets of them."""
    if isinstance(base, list | tuple):
        return [_over(one, own) for one in base] if isinstance(own, Mapping) else own
    return {**(base or {}), **own} if isinstance(own, Mapping) else own


def _known(where: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: no {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
