"""Copies from the host to a device behind the back of the threads that read: streams, events, pinned memory."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np
import torch

from modegap.kernels import absmax, crc32c

from .batch import Magnitudes
from .files import Files, kvik_files

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped


class Done(Protocol):
    """A point in a device's work."""

    def query(self) -> bool:
        """Whether the device has come as far."""

    def synchronize(self) -> None:
        """Return when the device has come as far."""


class Sums(Protocol):
    """Checksums that a device computes."""

    def result(self) -> list[int]:
        """Wait for them."""


class Found(Protocol):
    """Magnitudes that a device looks for."""

    def result(self) -> list[Magnitudes]:
        """Wait for them; for use by the calling thread's work."""


class Copies(Protocol):
    """What a ring of buffers asks of a device; `Lane` is whatever orders copies there, such as a stream.

    Attributes:
        sums: whether the device computes checksums.
    """

    sums: bool

    def files(self, threads: int) -> Files | None:
        """What reads local files to the device with `threads` threads of its own, if there is such a thing."""

    def within(self, lane: Any) -> AbstractContextManager[None]:
        """Inside, `copy` may be called from a thread that does other work on the device too."""

    def pinned(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the device can copy from by itself."""

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the device."""

    def lane(self) -> Any:
        """A new order of copies."""

    def copy(self, lane: Any, target: torch.Tensor, source: torch.Tensor) -> Done:
        """Start a copy after the lane's earlier ones, and return its end."""

    def crc32c(self, lane: Any, blocks: torch.Tensor) -> Sums:
        """Start to sum each of the blocks [n, m], after the lane's copies."""

    def absmax(self, lane: Any, blocks: Sequence[torch.Tensor]) -> Found:
        """Start to look for the largest magnitudes in each column of each block [n, d], after the lane's copies."""

    def mark(self) -> Done:
        """Where the work is that the calling thread has given to the device."""

    def hold(self, lane: Any, point: Done) -> None:
        """Let the lane's next copies wait for a `mark`."""

    def follow(self, lane: Any, target: torch.Tensor) -> None:
        """Let the calling thread's next work on `target` wait for all copies of the lane."""

    def finish(self, lane: Any) -> None:
        """Return when all copies of the lane have ended."""


class CudaCopies:
    """`Copies` on an NVIDIA GPU: a lane is a stream."""

    def __init__(self, device: torch.device) -> None:
        """Copies to `device`, where Triton's kernels sum them if it is there and serves this GPU."""
        self._device = device
        new = torch.cuda.get_device_capability(device) >= (8, 0)
        self.sums = new and importlib.util.find_spec("triton") is not None

    def files(self, threads: int) -> Files | None:
        """KvikIO, if it is installed."""
        return kvik_files(threads)

    def within(self, lane: Any) -> AbstractContextManager[None]:
        """The stream, and afterwards the one before."""
        return cast("AbstractContextManager[None]", _cuda.stream(lane))

    def pinned(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory; torch keeps what is freed for the next stream."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def empty(self, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Memory on the GPU."""
        return torch.empty(shape, dtype=dtype, device=self._device)

    def lane(self) -> Any:
        """A stream; its small kernels go before those of the consumer that have not begun."""
        return _cuda.Stream(self._device, priority=-1)

    def copy(self, lane: Any, target: torch.Tensor, source: torch.Tensor) -> Done:
        """One asynchronous copy from a thread that does nothing else on the GPU: its stream is left set.

        The event lets a waiting thread sleep, not spin.
        """
        done: Any = _cuda.Event(blocking=True)
        _cuda.set_stream(lane)
        target.copy_(source, non_blocking=True)
        done.record(lane)
        return cast("Done", done)

    def crc32c(self, lane: Any, blocks: torch.Tensor) -> Sums:
        """Kernel and copy to the host on the stream."""
        with _cuda.stream(lane):
            return _CudaSums(crc32c(blocks).view(torch.int32), lane)

    def absmax(self, lane: Any, blocks: Sequence[torch.Tensor]) -> Found:
        """Kernels and a copy to the host on the stream."""
        with _cuda.stream(lane):
            return _CudaMagnitudes(torch.stack([absmax(rows).float() for rows in blocks]), lane)

    def mark(self) -> Done:
        """An event on the current stream; a thread that waits for it sleeps."""
        point: Any = _cuda.Event(blocking=True)
        point.record(_cuda.current_stream(self._device))
        return cast("Done", point)

    def hold(self, lane: Any, point: Done) -> None:
        """The stream waits, not the host."""
        lane.wait_event(point)

    def follow(self, lane: Any, target: torch.Tensor) -> None:
        """The current stream waits; the memory of `target` is not reused before its work has ended."""
        current = _cuda.current_stream(self._device)
        current.wait_stream(lane)
        target.record_stream(current)

    def finish(self, lane: Any) -> None:
        """Wait for the stream."""
        lane.synchronize()


class _Fetched:
    """A small result on its way to the host."""

    def __init__(self, result: torch.Tensor, lane: Any) -> None:
        self._host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self._host.copy_(result, non_blocking=True)
        self._done: Any = _cuda.Event(blocking=True)
        self._done.record(lane)

    def fetched(self) -> torch.Tensor:
        self._done.synchronize()
        return self._host


class _CudaSums(_Fetched):
    def result(self) -> list[int]:
        found: list[int] = self.fetched().numpy().view(np.uint32).tolist()
        return found


class _CudaMagnitudes(_Fetched):
    def __init__(self, channels: torch.Tensor, lane: Any) -> None:
        super().__init__(channels, lane)
        self._channels = channels

    def result(self) -> list[Magnitudes]:
        host = self.fetched()
        self._channels.record_stream(_cuda.current_stream(self._channels.device))
        return list(map(Magnitudes, self._channels.unbind(), host.unbind()))


class Staged:
    """A host buffer as a tensor and as an array of the same memory.

    To make a view of a tensor hands over the interpreter's lock; to make one of an array does not.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        """Both views, once."""
        self.rows = rows
        self.array: np.ndarray = rows.numpy()


class Staging:
    """Host buffers on the way to a device, reused as soon as their copy has ended; safe from several threads."""

    def __init__(self, count: int, make: Callable[[], torch.Tensor]) -> None:
        """At most `count` buffers, each made when there is no other."""
        self._make = make
        self._unmade = count
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[tuple[Staged, Done | None]] = queue.SimpleQueue()

    def take(self) -> Staged:
        """A buffer that may be overwritten; waits until there is one, and for its last copy.

        Whoever holds one gives it back without waiting for another, so that this always ends.
        """
        try:
            buffer, copied = self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                make = self._unmade > 0
                self._unmade -= make
            if make:
                return Staged(self._make())
            buffer, copied = self._free.get()
        # To ask costs nothing; to wait hands over the interpreter's lock, which costs 75 us among 12 readers.
        if copied is not None and not copied.query():
            copied.synchronize()
        return buffer

    def give_back(self, buffer: Staged, copied: Done | None) -> None:
        """Return a buffer; `copied` is the end of the copy from it, None where there is none."""
        self._free.put((buffer, copied))
