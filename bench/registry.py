"""Which cases exist: by device and family, built only when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .harness import OURS, Case, Device

WIDTHS: dict[Device, tuple[int, ...]] = {"cpu": (1024, 4096), "cuda": (4096, 8192)}
"""Widths measured unless others are asked for."""


@dataclass(frozen=True, slots=True)
class Family:
    """Cases that share their setup.

    Attributes:
        name: what `--case` selects; the same operation has the same name on both devices.
        device: where it runs.
        module: that holds the setup factory, imported when the family is built.
        factory: function of that module: width -> cases.
    """

    name: str
    device: Device
    module: str
    factory: str

    def cases(self, width: int, providers: Sequence[str] = ()) -> Iterator[Case]:
        """The cases at a width, one at a time (a generator holds only its own inputs).

        Args:
            width: channels.
            providers: words; only providers whose name holds one of them, and ours, are kept.
        """
        for case in getattr(importlib.import_module(f"bench.{self.module}"), self.factory)(width):
            if providers:
                case.providers = {k: v for k, v in case.providers.items() if _wanted(k, providers)}
                case.missing = {k: v for k, v in case.missing.items() if _wanted(k, providers)}
            yield case


def _wanted(name: str, words: Iterable[str]) -> bool:
    return name.startswith(OURS) or any(word.lower() in name.lower() for word in words)


FAMILIES = (
    Family("covariance", "cuda", "cuda.covariance", "covariance_cases"),
    Family("energy", "cuda", "cuda.modes", "energy_cases"),
    Family("ablation", "cuda", "cuda.modes", "ablation_cases"),
    Family("segments", "cuda", "cuda.segments", "segment_cases"),
    Family("staging", "cuda", "cuda.segments", "staging_cases"),
    Family("checksum", "cuda", "cuda.checksum", "checksum_cases"),
    Family("ghost", "cuda", "cuda.ghost", "ghost_cases"),
    Family("layers", "cuda", "cuda.layers", "layer_cases"),
    Family("eigh", "cuda", "cuda.modes", "eigh_cases"),
    Family("covariance", "cpu", "cpu.covariance", "covariance_cases"),
    Family("gram", "cpu", "cpu.covariance", "gram_cases"),
    Family("cross", "cpu", "cpu.covariance", "cross_cases"),
    Family("rayleigh", "cpu", "cpu.modes", "rayleigh_cases"),
    Family("energy", "cpu", "cpu.modes", "energy_cases"),
    Family("ablation", "cpu", "cpu.modes", "ablation_cases"),
    Family("segments", "cpu", "cpu.segments", "segment_cases"),
    Family("staging", "cpu", "cpu.segments", "staging_cases"),
    Family("ghost", "cpu", "cpu.segments", "ghost_cases"),
    Family("eigh", "cpu", "cpu.modes", "eigh_cases"),
)


def select(device: Device, names: Sequence[str] = ()) -> list[Family]:
    """The families of a device, all or those named.

    Raises:
        ValueError: a name that no family of the device has; it lists those that exist.
    """
    known = [family for family in FAMILIES if family.device == device]
    unknown = [name for name in names if name not in {family.name for family in known}]
    if unknown:
        listed = ", ".join(family.name for family in known)
        raise ValueError(f"case: got {', '.join(unknown)}, expected some of {listed} on {device}")
    return [family for family in known if not names or family.name in names]
