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
    with (
        cupy.cuda.Device(index),
        cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream, index),
    ):
        yield


def view(x: torch.Tensor) -> Any:
    """The same memory as a CuPy array."""
    return cupy.from_dlpack(x.detach())
