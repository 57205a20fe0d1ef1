"""What the CuPy paths share: torch's tensors through DLPack with no copy, on torch's device and stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy
import torch


@contextmanager
def on_torch_stream(device: torch.device) -> Iterator[None]:
    """CuPy works on torch's current stream of that device inside, so that no synchronisation is needed."""
    index = torch.cuda.current_device() if device.index is None else device.index
    pointer = torch.cuda.current_stream(index).cuda_stream
    with cupy.cuda.Device(index):
        if hasattr(cupy.cuda.Stream, "from_external"):  # CuPy 14; it deprecates the other
            stream = cupy.cuda.Stream.from_external(_Pointer(pointer))
        else:
            stream = cupy.cuda.ExternalStream(pointer, index)
        with stream:
            yield


class _Pointer:
    """A CUDA stream by its address, in the protocol of that name."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def view(x: torch.Tensor) -> Any:
    """The same memory as a CuPy array."""
    return cupy.from_dlpack(x.detach())
