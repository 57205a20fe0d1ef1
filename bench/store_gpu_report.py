"""What `bench.store_gpu` says about its machine and its goals, and two tools of it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from modegap.engine.upload import CudaCopies
from modegap.stores import DamagedChunkError, checksum

from .environment import environment


class HostSums(CudaCopies):
    """Copies whose chunks the host has to verify, so that KvikIO cannot read them."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.sums = False


def complaint(read: Callable[[], object]) -> str | None:
    """What a reader says of damage."""
    try:
        read()
    except DamagedChunkError as error:
        return str(error)
    return None


def goals(report: dict[str, Any]) -> dict[str, Any]:
    """The reference rate and what reaches which part of it."""
    best = max(entry["gbps"] for entry in report["mmap"].values())
    base = min(report["upload"]["gbps"], best)
    found = {
        "stream, verified": (report["stream"]["default"]["gbps"] / base, 0.80),
        "stream, not verified": (report["stream, not verified"]["default"]["gbps"] / base, 0.80),
        "covariance": (report["covariance"]["gbps"] / base, 0.75),
    }
    return {
        "reference_gbps": base,
        "limited_by": "upload" if base < best else "mmap",
        **{
            name: {"at_least": goal, "found": value, "met": value >= goal}
            for name, (value, goal) in found.items()
        },
    }


def machine(device: str, commit: str | None) -> dict[str, Any]:
    """GPU, processor, memory, versions."""
    facts = environment("cuda" if device == "cuda" else "cpu", commit)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        **facts,
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "checksum": checksum.LIBRARY,
    }


def roomy(gib: float) -> str | None:
    """A folder in memory for so much, if there is one; None is the usual place for temporary files."""
    for place in ("/dev/shm", None):
        folder = place or tempfile.gettempdir()
        if Path(folder).is_dir() and shutil.disk_usage(folder).free > gib * 1.1 * 2**30:
            return place
    return None
