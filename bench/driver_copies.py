"""Copies to a GPU by the CUDA driver's calls, which keep the interpreter's lock: to compare with torch's.

torch lets other threads run during each of its calls, short as they are.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any, Final

import torch

from modegap.engine.upload import CudaCopies, Done

_LIBRARY: Final = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_NOT_READY: Final = 600
_cuda: Any = torch.cuda


@lru_cache(maxsize=1)
def _driver() -> Any:
    """The library that torch has loaded already; `PyDLL` keeps the lock."""
    driver: Any = ctypes.PyDLL(_LIBRARY)
    handle = ctypes.c_void_p
    driver.cuCtxGetCurrent.argtypes = [ctypes.POINTER(handle)]
    driver.cuCtxSetCurrent.argtypes = [handle]
    driver.cuMemcpyHtoDAsync_v2.argtypes = [ctypes.c_uint64, handle, ctypes.c_size_t, handle]
    driver.cuEventRecord.argtypes = [handle, handle]
    driver.cuEventQuery.argtypes = [handle]
    driver.cuGetErrorName.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]
    return driver


def _check(code: int) -> None:
    if code:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(code, ctypes.byref(name))
        raise RuntimeError(f"CUDA error {code}: {(name.value or b'unknown').decode()}")


class Event:
    """A point in a stream, recorded again and again; a thread that waits for it sleeps."""

    def __init__(self, stream: Any) -> None:
        """Recorded where the stream is now."""
        self._event: Any = _cuda.Event(blocking=True)
        self._event.record(stream)
        self.handle: int = self._event.cuda_event

    def query(self) -> bool:
        """Whether the stream has come as far."""
        code = _driver().cuEventQuery(self.handle)
        if code != _NOT_READY:
            _check(code)
        return not code

    def synchronize(self) -> None:
        """Return when the stream has come as far."""
        self._event.synchronize()


class Context:
    """What the driver's calls for one GPU need to be current in the thread that makes them."""

    def __init__(self, device: torch.device) -> None:
        """The context that torch uses."""
        held = ctypes.c_void_p()
        with _cuda.device(device):
            _cuda.current_stream(device).query()  # makes it current
            _check(_driver().cuCtxGetCurrent(ctypes.byref(held)))
        self._handle = held.value

    def copy(self, stream: Any, target: int, source: int, size: int, done: Event) -> None:
        """Start a copy of `size` bytes of pinned memory to the GPU, by address, and record its end."""
        driver, lane = _driver(), stream.cuda_stream
        _check(driver.cuCtxSetCurrent(self._handle))
        _check(driver.cuMemcpyHtoDAsync_v2(target, source, size, lane))
        _check(driver.cuEventRecord(done.handle, lane))


class DriverCopies(CudaCopies):
    """`CudaCopies` with the driver's calls."""

    def __init__(self, device: torch.device) -> None:
        """Copies to `device`."""
        super().__init__(device)
        self._context = Context(device)
        self._ends: dict[int, Event] = {}  # by address of what is copied: an event a buffer

    def copy(self, lane: Any, target: torch.Tensor, source: torch.Tensor) -> Done:
        """One asynchronous copy, from a thread of its own: the GPU becomes the thread's current one."""
        at = source.data_ptr()
        if (done := self._ends.get(at)) is None:
            done = self._ends[at] = Event(lane)
        self._context.copy(lane, target.data_ptr(), at, source.nbytes, done)
        return done
