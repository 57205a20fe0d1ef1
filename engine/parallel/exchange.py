"""Partial results between processes, as plain tensors: from GPU to GPU where they lie there."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from modegap.engine.packing import Part, joined, split

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
    """Size of the description, the description, then every array as bytes; what is on a GPU goes from there."""
    header, values = split((part.reduction, part.rows))
    said = np.frombuffer(pickle.dumps((header, [_described(one) for one in values])), dtype=np.uint8).copy()
    plain = [torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for v in values]
    sent = [torch.tensor([len(said)]), torch.from_numpy(said)]
    sent += [one.detach().contiguous().reshape(-1).view(torch.uint8) for one in plain if one.numel()]
    return [tensor.to(place) for tensor in sent]


def _described(value: torch.Tensor | np.ndarray) -> tuple[str | torch.dtype, tuple[int, ...], bool]:
    """Dtype (numpy's as a string), shape, and whether it lies on a device."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, False
    return value.dtype, tuple(value.shape), value.device.type != "cpu"


def _assembled(place: torch.device, fill: Any) -> Part:
    def take(count: int, dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(count, dtype=dtype, device=place)
        if count:
            fill(tensor)
        return tensor

    size = int(take(1, torch.int64))
    # from a process of the same run, started by the same command
    header, described = pickle.loads(take(size, torch.uint8).cpu().numpy().tobytes())
    values: list[torch.Tensor | np.ndarray] = []
    for dtype, shape, there in described:
        of = np.dtype(dtype) if isinstance(dtype, str) else dtype
        came = take(math.prod(shape) * of.itemsize, torch.uint8)
        held = came if there else came.cpu()
        values.append(
            held.numpy().view(of).reshape(shape) if isinstance(of, np.dtype) else held.view(of).reshape(shape)
        )
    reduction, rows = joined(header, values)
    return Part(reduction, rows)
