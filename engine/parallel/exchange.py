"""Partial results between processes, as plain tensors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from modegap.engine.packing import Packed, Part, pack, unpack

from .ranks import Ranks


def send(part: Part, to: int, ranks: Ranks) -> None:
    """Give a part to another process, which calls `receive`."""
    for tensor in _tensors(part, ranks.carrier):
        dist.send(tensor, to)


def receive(source: int, ranks: Ranks) -> Part:
    """The part that another process sends."""
    return _assembled(ranks.carrier, lambda tensor: dist.recv(tensor, source))


def broadcast(part: Part | None, source: int, ranks: Ranks) -> Part:
    """The part that `source` has, in every process."""
    if ranks.rank == source:
        assert part is not None
        for tensor in _tensors(part, ranks.carrier):
            dist.broadcast(tensor, source)
        return part
    return _assembled(ranks.carrier, lambda tensor: dist.broadcast(tensor, source))


def _tensors(part: Part, place: torch.device) -> list[torch.Tensor]:
    """Size of the description, the description, then every array as bytes."""
    packed = pack((part.reduction, part.rows))
    shapes = [(array.dtype.str, array.shape) for array in packed.arrays]
    said = np.frombuffer(pickle.dumps((packed.header, shapes)), dtype=np.uint8).copy()
    arrays = [torch.from_numpy(array.reshape(-1).view(np.uint8)) for array in packed.arrays]
    sent = [torch.tensor([len(said)]), torch.from_numpy(said), *(array for array in arrays if len(array))]
    return [tensor.to(place) for tensor in sent]


def _assembled(place: torch.device, fill: Any) -> Part:
    def take(count: int, dtype: torch.dtype) -> np.ndarray:
        tensor = torch.empty(count, dtype=dtype, device=place)
        if count:
            fill(tensor)
        return tensor.cpu().numpy()

    size = int(take(1, torch.int64)[0])
    # from a process of the same run, started by the same command
    header, shapes = pickle.loads(take(size, torch.uint8).tobytes())
    arrays = []
    for dtype, shape in shapes:
        of = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * of.itemsize
        arrays.append(take(count, torch.uint8).view(of).reshape(shape))
    reduction, rows = unpack(Packed(header, tuple(arrays)))
    return Part(reduction, rows)
