"""Subsets of modes by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from modegap.analyses.align import Modes


@dataclass(frozen=True, slots=True)
class Subset:
    """Modes that are removed together.

    Attributes:
        name: the condition they belong to, as it was asked for.
        indices: mode numbers, ascending, that is in order of variance.
        seed: of a random draw; None for the others.
    """

    name: str
    indices: tuple[int, ...]
    seed: int | None = None


_EACH = r"each(?:\*(\d+))?"


class EmptySubset(ValueError):
    """A subset that has no modes here; the message says why."""


def subsets_of(modes: Modes, names: tuple[str, ...], seed: int) -> tuple[list[Subset], tuple[str, ...]]:
    """The subsets that `names` ask for, in order, and why others have no modes.

    `none` and the sweeps (`each`) give no subset, `random*N` gives N. One without modes (say, no mode is
    text-aligned) is left out with a message, unless nothing is left.

    Raises:
        ValueError: a name that is not understood, modes that do not exist, or no subset with modes.
    """
    out: list[Subset] = []
    left_out: list[str] = []
    for name in dict.fromkeys(name.strip() for name in names):
        try:
            out += _parse(modes, name, seed)
        except EmptySubset as empty:
            left_out.append(f"{name} left out: {empty}")
    if left_out and not out:
        raise ValueError("; ".join(left_out))
    return out, tuple(left_out)


def swept(modes: Modes, names: tuple[str, ...]) -> tuple[int, ...]:
    """Mode numbers that `each` (the considered ones) and `each*K` (the first K) ask for, ascending.

    Raises:
        ValueError: more modes than there are.
    """
    wanted: set[int] = set()
    for name in names:
        if found := re.fullmatch(_EACH, name.strip()):
            size = None if found[1] is None else _positive(name, found[1])
            if size is not None and size > modes.d:
                raise ValueError(f"{name}: there are only {modes.d} modes")
            wanted.update(modes.considered.tolist() if size is None else range(size))
    return tuple(sorted(wanted))


def _parse(modes: Modes, name: str, seed: int) -> list[Subset]:
    if name == "none" or re.fullmatch(_EACH, name):
        return []
    if name == "ms":
        return [Subset(name, _specific(modes))]
    if name == "ta":
        aligned = modes.ta[: len(_specific(modes))].tolist()
        if not aligned:
            raise EmptySubset(f"no considered mode has rho at or above {modes.config.threshold:g}")
        return [Subset(name, _indices(aligned))]
    if found := re.fullmatch(r"random(?:\*(\d+))?", name):
        draws, size = _positive(name, found[1] or "1"), len(_specific(modes))
        return [_draw(modes, name, size, seed + i) for i in range(draws)]
    if found := re.fullmatch(r"top\*(\d+)", name):
        size = _positive(name, found[1])
        if size > len(modes.considered):
            raise ValueError(
                f"{name}: only {len(modes.considered)} modes are considered; align with a larger top"
            )
        return [Subset(name, _indices(modes.considered[:size].tolist()))]
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", name):
        indices = _indices([int(number) for number in name.split(",")])
        if indices[-1] >= modes.d:
            raise ValueError(f"{name}: there are modes 0 to {modes.d - 1}, got {indices[-1]}")
        return [Subset(name, indices)]
    raise ValueError(
        f"subset {name!r} is not understood; expected none, ms, ta, random*N, top*K, each, each*K or mode "
        "numbers (0,3,7)"
    )


def _draw(modes: Modes, name: str, size: int, seed: int) -> Subset:
    """As the published control: `size` of the considered modes without replacement, whatever their class."""
    chosen = np.random.default_rng(seed).choice(len(modes.considered), size=size, replace=False)
    return Subset(name, _indices(modes.considered[chosen].tolist()), seed)


def _specific(modes: Modes) -> tuple[int, ...]:
    if not len(modes.ms):
        raise EmptySubset(
            f"no considered mode has rho below {modes.config.threshold:g}; align with another threshold, or "
            "name modes with top*K or 0,3,7"
        )
    return _indices(modes.ms.tolist())


def _indices(numbers: list[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def _positive(name: str, text: str) -> int:
    if int(text) < 1:
        raise ValueError(f"{name}: got {text}, expected at least 1")
    return int(text)
