"""Which samples an adapter is trained on, which early stopping looks at, and which nobody has seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modegap.analyses.probe.config import ProbeConfig
from modegap.analyses.probe.splits import splits
from modegap.stores.durable import replaced

from .config import LoraConfig

Codes = NDArray[np.int64]
_FORMAT = "modegap.split/1"


@dataclass(frozen=True, slots=True)
class Split:
    """Sample ids of the three parts.

    Attributes:
        label: whose classes are in the same proportions everywhere.
        group: label column that no part shares a value of; None for none.
        seed: of the split.
        test_fraction: share that was asked for.
        validation_fraction: the same of the validation samples.
        train: ids to train on.
        validation: ids for early stopping.
        test: ids that everything is measured on.
    """

    label: str
    group: str | None
    seed: int
    test_fraction: float
    validation_fraction: float
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write it as JSON, replacing the file atomically."""
        with replaced(path) as aside:
            aside.write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n")


def make_split(
    label: str, ids: Sequence[str], codes: Codes, groups: Codes | None, config: LoraConfig
) -> Split:
    """A stratified split of the samples; the same for the same arguments.

    Args:
        label: name of the label.
        ids: sample ids [n].
        codes: their classes [n].
        groups: groups that no part shares [n], or None.
        config: shares and seed.
    """
    rest, test = _cut(codes, groups, config.test_fraction, config.seed)
    share = config.validation_fraction / (1 - config.test_fraction)
    within = None if groups is None else groups[rest]
    train, validation = (rest[part] for part in _cut(codes[rest], within, share, config.seed))

    def named(part: Codes) -> tuple[str, ...]:
        return tuple(ids[number] for number in np.sort(part).tolist())

    shares = (config.test_fraction, config.validation_fraction)
    return Split(label, config.group, config.seed, *shares, named(train), named(validation), named(test))


def load_split(path: Path) -> Split:
    """The split that `Split.save` wrote.

    Raises:
        ValueError: the file holds none.
        OSError: no such file.
    """
    try:
        content = json.loads(path.read_text())
        if content.pop("format") != _FORMAT:
            raise ValueError(f"{path} is not a {_FORMAT} file; remove it")
        for name in ("train", "validation", "test"):
            content[name] = tuple(content[name])
        return Split(**content)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no split ({error!r}); remove it") from error


def _cut(codes: Codes, groups: Codes | None, share: float, seed: int) -> tuple[Codes, Codes]:
    """(kept, taken out) with `share` of the samples taken out."""
    _, (kept, taken) = next(splits(codes, ProbeConfig(seeds=(seed,), test_fraction=share), groups))
    return np.asarray(kept, dtype=np.int64), np.asarray(taken, dtype=np.int64)
