"""Scratch memory that outlives a call, so that a streaming loop allocates nothing."""

from __future__ import annotations

import math

import torch


class Workspace:
    """Named scratch tensors, kept at the largest size asked for and handed out as views.

    Fresh allocations above glibc's 32 MiB mmap threshold cost a page fault per 4 KiB at every call; a
    reduction therefore owns one workspace and passes it to every update. Contents are undefined. Not for
    concurrent use.
    """

    def __init__(self) -> None:
        """Nothing held."""
        self._held: dict[str, torch.Tensor] = {}

    def get(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Uninitialised contiguous tensor of that shape; the same memory at every call with this name."""
        size = math.prod(shape)
        device = torch.device(device)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype or held.device != device:
            self._held.pop(name, None)
            with torch.inference_mode(False):  # else it could not be written to outside of inference mode
                held = self._held[name] = torch.empty(size, dtype=dtype, device=device)
        return held[:size].view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for t in self._held.values())
