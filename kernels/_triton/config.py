"""Fixed launch configurations, one table per kernel, keyed by compute capability.

Nothing is tuned at import or at the first call: a result must not depend on which configuration won a timing
race, and an accumulating kernel may not be run more often than asked. The figures for 90 were measured on an
H100; those for 80 and 86 keep the same shapes within the smaller shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
"""Bytes of shared memory one program may use on each architecture that the kernels are compiled for."""


@dataclass(frozen=True, slots=True)
class Config:
    """Compile-time constants of one kernel (`blocks`), its warps, pipelining depth and register cap."""

    blocks: Mapping[str, int | bool] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    registers: int | None = None

    @property
    def launch(self) -> dict[str, int | bool]:
        """Keyword arguments of a launch."""
        options: dict[str, int | bool] = {**self.blocks, "num_warps": self.warps, "num_stages": self.stages}
        if self.registers is not None:
            options["maxnreg"] = self.registers
        return options


def capability(device: torch.device) -> int:
    """Compute capability as one number (90 for an H100); 90 off the GPU, where only the interpreter runs."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def pick(table: Mapping[int, Config], device: torch.device) -> Config:
    """The entry for the newest architecture that is not newer than the device's."""
    have = capability(device)
    known = [cc for cc in table if cc <= have]
    if not known:
        raise ValueError(f"kernels need compute capability {min(table) / 10} or newer, got {have / 10}")
    return table[max(known)]


def device_of(x: torch.Tensor) -> AbstractContextManager[None]:
    """Makes x's GPU the current one inside, as a launch needs; nothing for a tensor on the host."""
    context: AbstractContextManager[None] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return context


def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors; 4 off the GPU, so that the interpreter also splits small problems."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
