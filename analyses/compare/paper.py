"""The paper's published numbers, shipped as data, and which of them speak of a study."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

if TYPE_CHECKING:
    from modegap.analyses.study import Study

Basis = Literal["seeds", "tolerance", "digits"]
_FILE = Path(__file__).with_name("paper.yaml")
_VALUE = re.compile(r"(-?\d+(?:\.(\d+))?)(?:([±~])(\d+(?:\.\d+)?))?")
_SEEDS, _TEST_SHARE, _LEVEL = 5, 0.25, 0.95  # five splits, 20 % of the samples to test on


@dataclass(frozen=True, slots=True)
class Published:
    """One published number.

    Attributes:
        table: where it is printed.
        group: kind of result.
        system: the model's short name.
        dataset: the data set's.
        name: quantity, or the label that was probed.
        point: hook point; empty where the quantity has none.
        value: the number.
        half: half-width of its interval: of the 95 % interval over five seeds (`seeds`), what the authors' check of a
            repeated run allows (`tolerance`), or half a unit of the last printed digit (`digits`).
        basis: which of these.
    """

    table: str
    group: str
    system: str
    dataset: str
    name: str
    point: str
    value: float
    half: float
    basis: Basis


@lru_cache(maxsize=1)
def _content() -> Mapping[str, Any]:
    # scalars as they are printed: 0.50 has two digits
    content: Mapping[str, Any] = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return content


def source() -> str:
    """Where the numbers were published."""
    return str(_content()["source"])


def tolerances() -> str:
    """Where the tolerances were published."""
    return str(_content()["tolerances"])


def published() -> Iterator[Published]:
    """Every number, section by section."""
    for group, section in _content().items():
        if not isinstance(section, Mapping) or "values" not in section:
            continue
        points = section.get("points", [""])
        for system, datasets in section["values"].items():
            for dataset, entries in datasets.items():
                for name, text in entries.items():
                    # a label has a number at every hook point; anything else has one
                    parts = text.split() if "points" in section else [text]
                    for point, part in zip(points, parts, strict=True):
                        where = (section["table"], group, system, dataset, name, point)
                        yield Published(*where, *_number(part))


def system_of(study: Study) -> tuple[str, str] | None:
    """(system, data set) that a study repeats, by the provenance of its store; None where it repeats none."""
    for facts in study.provenance.values():
        model, data = str(facts.get("model", "")).lower(), str(facts.get("dataset", "")).lower()
        if facts.get("as_text"):
            continue
        system = _match(model, _content()["systems"])
        dataset = _match(data, _content()["datasets"])
        if system and dataset:
            return system, dataset
    return None


def _match(text: str, patterns: Mapping[str, list[str]]) -> str | None:
    return next((name for name, known in patterns.items() if any(fnmatch(text, p) for p in known)), None)


def _number(text: str) -> tuple[float, float, Basis]:
    found = _VALUE.fullmatch(text)
    if found is None:
        raise ValueError(f"{_FILE.name}: {text!r} is no number, number±std or number~tolerance")
    value, digits, kind, spread = found.groups()
    if kind == "±":
        return float(value), _over_seeds(float(spread)), "seeds"
    if kind == "~":
        return float(value), float(spread), "tolerance"
    return float(value), 0.5 * 10.0 ** -len(digits or ""), "digits"


def _over_seeds(std: float) -> float:
    """Half-width of the interval of a mean over five overlapping splits (`corrected_interval`) with this spread."""
    from scipy.stats import t

    return float(t.ppf(0.5 + _LEVEL / 2, _SEEDS - 1)) * std * math.sqrt(1 / _SEEDS + _TEST_SHARE)
