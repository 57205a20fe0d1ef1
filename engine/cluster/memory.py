"""How much memory a task takes, and whether the workers have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modegap.engine.errors import EngineError

PROCESS_BYTES = 400 << 20
"""A worker's interpreter with torch and Dask, 350 MB measured."""
USABLE = 0.8
"""Share of its limit at which Dask pauses a worker."""
_BUFFERS = 5
"""Chunks that a pass holds: two being filled, one at work, and two readers' own."""


def leaf_bytes(state: int, block: int, chunk: int) -> int:
    """Of a shard's pass: its result, three blocks in fp32, and the buffers that rows are read into."""
    return state + 3 * block + _BUFFERS * chunk


def merge_bytes(state: int) -> int:
    """Of a merge: both parts, the whole, and one part as it came."""
    return 4 * state


class TooLargeError(EngineError):
    """A task that no worker has the memory for; `limit` is that of the largest, in bytes."""

    def __init__(self, message: str, limit: int = 0) -> None:
        """Say so."""
        super().__init__(message)
        self.limit = limit


def check_workers(workers: Mapping[str, Mapping[str, Any]], need: int, what: str) -> list[str]:
    """Addresses of the workers that can hold a task of `need` bytes.

    Raises:
        TooLargeError: none can; says how much it takes.
    """
    limits = {address: one["memory_limit"] for address, one in workers.items()}
    fit = [address for address, limit in limits.items() if not limit or fits(need, limit)]
    if not fit:
        most = max(limits.values(), default=0)
        raise TooLargeError(
            f"{what}: a worker needs a memory limit of {needed_limit(need) / 1e9:.2f} GB, the largest has "
            f"{most / 1e9:.2f} GB; start fewer workers with more memory each (--memory-limit of dask worker, "
            "memory: of a job queue)",
            most,
        )
    return fit


def fits(need: int, limit: int) -> bool:
    """Whether a task of `need` bytes fits a worker's limit."""
    return need + PROCESS_BYTES <= USABLE * limit


def needed_limit(need: int) -> int:
    """The least memory limit of a worker for a task of `need` bytes."""
    return int((need + PROCESS_BYTES) / USABLE)
