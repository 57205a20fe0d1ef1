"""From the device to the host: a ring of pinned buffers, copied on a stream of its own."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .collect import Collected

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped
_ALIGN = 256


@dataclass(slots=True, eq=False)
class _Slot:
    """Pinned memory for one batch; grows to the largest batch seen and is then reused."""

    buffer: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    used: int = 0

    def reserve(self, nbytes: int) -> None:
        self.used = 0
        if self.buffer.numel() < nbytes:
            self.buffer = torch.empty(0, dtype=torch.uint8)  # free the old one before asking for more
            self.buffer = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        part = self.buffer[self.used : self.used + size]
        self.used += _aligned(size)
        return part.view(tensor.dtype).view(tensor.shape)


@dataclass(slots=True, eq=False)
class Flight:
    """A batch on its way to the host.

    Attributes:
        indices: sample indices.
        ids: their ids.
        columns: (token ids, modality) by stream of each sample; empty where no token rows are wanted.
        on_device: what was sent; keeps the device memory until `land`.
    """

    indices: list[int]
    ids: list[str]
    columns: list[dict[str, Any]]
    on_device: dict[str, Collected]
    _host: dict[str, Collected]
    _events: list[Any]
    _slot: _Slot | None
    _free: queue.SimpleQueue[_Slot]

    @property
    def borrowed(self) -> bool:
        """Whether what `land` returns lies in a buffer that `release` gives away."""
        return self._slot is not None

    def land(self) -> dict[str, Collected]:
        """Waits for the copies; the host's tensors, valid until `release`."""
        for event in self._events:
            event.synchronize()
        return self._host

    def release(self) -> None:
        """Gives the buffer back to the ring."""
        slot, self._slot = self._slot, None
        self._host, self.on_device = {}, {}
        if slot is not None:
            self._free.put(slot)


class Shuttle:
    """Starts the copies of batches; at most `depth` are on their way.

    On the host nothing is copied: a batch's tensors are handed over.
    """

    def __init__(self, depth: int = 3, fields: Sequence[str] = ("tokens", "pooled", "top")) -> None:
        """Buffers are made when they are first needed; `fields` of `Collected` are copied."""
        self._fields = tuple(fields)
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._unmade = depth
        self._streams: dict[torch.device, Any] = {}

    def send(
        self,
        indices: Sequence[int],
        ids: Sequence[str],
        columns: list[dict[str, Any]],
        collected: Mapping[str, Collected],
    ) -> Flight:
        """Queues the copies behind the kernels that make the tensors; waits only for a free buffer."""
        given = dict(collected)
        moving = [tensor for one in given.values() for tensor in self._of(one).values() if tensor.is_cuda]
        if not moving:
            return Flight(list(indices), list(ids), columns, given, given, [], None, self._free)
        slot = self._slot()
        try:
            slot.reserve(sum(_aligned(tensor.numel() * tensor.element_size()) for tensor in moving))
            host, events = self._copy(given, slot)
        except BaseException:
            self._free.put(slot)
            raise
        return Flight(list(indices), list(ids), columns, given, host, events, slot, self._free)

    def _of(self, one: Collected) -> dict[str, torch.Tensor]:
        found = {name: getattr(one, name) for name in self._fields}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _slot(self) -> _Slot:
        if self._unmade and self._free.empty():
            self._unmade -= 1
            return _Slot()
        return self._free.get()

    def _copy(self, given: dict[str, Collected], slot: _Slot) -> tuple[dict[str, Collected], list[Any]]:
        host, devices = {}, set()
        for name, one in given.items():
            device = one.top.device
            if device.type != "cuda":
                host[name] = one
                continue
            side = self._streams.setdefault(device, None) or _cuda.Stream(device)
            self._streams[device] = side
            devices.add(device)
            side.wait_stream(_cuda.current_stream(device))
            with _cuda.stream(side):
                copies: dict[str, Any] = {key: _copied(tensor, slot) for key, tensor in self._of(one).items()}
            host[name] = replace(one, **copies)
        events = []
        for device in devices:
            event = _cuda.Event(blocking=True)  # the thread that waits sleeps
            event.record(self._streams[device])
            events.append(event)
        return host, events


def _copied(tensor: torch.Tensor, slot: _Slot) -> torch.Tensor:
    tensor = tensor.contiguous()
    return slot.like(tensor).copy_(tensor, non_blocking=True)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
