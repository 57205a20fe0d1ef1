"""What of this machine a process may use, and with how many others of its run it shares that."""

from __future__ import annotations

import os
from typing import Final

PROCESSES: Final = "MODEGAP_HOST_PROCESSES"
"""Variable of the environment for `processes_here`, where torchrun does not say it in LOCAL_WORLD_SIZE."""


def cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Processes of a run on this machine; 1 where nobody has said.

    Raises:
        ValueError: what was said is no number of processes.
    """
    name = PROCESSES if PROCESSES in os.environ else "LOCAL_WORLD_SIZE"
    said = os.environ.get(name, "1")
    if not (said.isascii() and said.isdigit() and int(said)):
        raise ValueError(f"{name}: got {said!r}, expected the number of processes on this machine, 1 or more")
    return int(said)
