"""What this machine has: memory of its devices and of the host, space of a disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

_cuda: Any = torch.cuda


def gpu_memories() -> list[int]:
    """Total bytes of every visible GPU; empty without one."""
    if not torch.cuda.is_available():
        return []
    return [int(_cuda.get_device_properties(index).total_memory) for index in range(_cuda.device_count())]


def free_memory(device: torch.device) -> int:
    """Free bytes of a GPU, those counted in that torch holds without using them; of the host otherwise."""
    if device.type != "cuda":
        return host_memory()
    free, _ = _cuda.mem_get_info(device)
    return int(free) + int(_cuda.memory_reserved(device)) - int(_cuda.memory_allocated(device))


def host_memory() -> int:
    """Bytes of host memory that programs can have without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def disk_free(path: Path) -> int:
    """Free bytes where `path` is or will be."""
    found = path.expanduser().absolute()
    while not found.exists():
        found = found.parent
    return shutil.disk_usage(found).free
