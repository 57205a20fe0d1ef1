"""Local files into a GPU's memory, by KvikIO: its threads read, copy and wait without the interpreter's lock.

Where the driver of GPUDirect Storage is there nothing passes through the host at all. https://docs.rapids.ai/api/kvikio/stable/
"""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from .machine import processes_here

_PIECE_BYTES: Final = 8 << 20
_SHARED_PIECE_BYTES: Final = 4 << 20
"""What a thread reads and copies on at a time, alone on a machine and beside other processes.

Alone on an H100's host 4 and 16 MiB are a seventh to a quarter slower. The pieces that all threads have in hand must
stay in the processor's last cache, or each byte goes through memory twice more: two processes of 14 threads read
1.4 times as fast with 4 MiB as with 8.
"""
_GDS_DRIVER: Final = Path("/proc/driver/nvidia-fs")
_SET = threading.Lock()


class Reading(Protocol):
    """Bytes of a file on their way."""

    def done(self) -> bool:
        """Whether `ended` would not wait."""

    def ended(self) -> bool:
        """Wait for the end; whether all have come. Every reading's end is waited for."""


class Files(Protocol):
    """What reads files by itself."""

    def read(self, file: str, offset: int, target: torch.Tensor) -> Reading | None:
        """Start to fill `target`, contiguous; None where the file cannot be opened.

        No work on the device may use it before the reading has ended.
        """


class KvikFiles:
    """`Files` by KvikIO's threads, of which a process has one pool."""

    def __init__(self, kvikio: Any, threads: int) -> None:
        """Let the pool have at least so many threads; what KVIKIO_* variables of the environment say stays."""
        self._kvikio = kvikio
        self._piece = _PIECE_BYTES if processes_here() == 1 else _SHARED_PIECE_BYTES
        with _SET:
            defaults = kvikio.defaults
            if "KVIKIO_NTHREADS" not in os.environ and defaults.get("num_threads") < threads:
                defaults.set("num_threads", threads)
            if "KVIKIO_BOUNCE_BUFFER_SIZE" not in os.environ:
                defaults.set("bounce_buffer_size", self._piece)
            if "KVIKIO_COMPAT_MODE" not in os.environ and not _GDS_DRIVER.exists():
                # else it may go through cuFile, which has a slower way of its own to do without the driver
                defaults.set("compat_mode", kvikio.CompatMode.ON)

    def read(self, file: str, offset: int, target: torch.Tensor) -> Reading | None:
        """Open the file and queue its pieces."""
        try:
            opened = self._kvikio.CuFile(file, "r")
        except (OSError, RuntimeError, ValueError):
            return None
        try:
            future = opened.pread(target, target.nbytes, offset, self._piece)
        except BaseException:
            opened.close()
            raise
        return _KvikReading(opened, future, target.nbytes)


class _KvikReading:
    def __init__(self, opened: Any, future: Any, nbytes: int) -> None:
        self._opened, self._future, self._nbytes = opened, future, nbytes

    def done(self) -> bool:
        return bool(self._future.done())

    def ended(self) -> bool:
        try:
            return bool(self._future.get() == self._nbytes)
        except (OSError, RuntimeError, ValueError):  # cut short, say: the host's reader will tell
            return False
        finally:
            self._opened.close()


def kvik_files(threads: int) -> Files | None:
    """KvikIO with a pool of `threads`, or None where it is not installed or does not load."""
    if importlib.util.find_spec("kvikio") is None:
        return None
    try:
        import kvikio
        import kvikio.defaults
    except (ImportError, OSError, RuntimeError):  # the last for a CUDA library that is not found
        return None
    return KvikFiles(kvikio, threads)
