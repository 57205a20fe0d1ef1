"""Values between processes: what lies on a GPU goes from there over NCCL, all else from host to host over gloo."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from modegap.engine.packing import joined, kind_of, plain, remade, split

from .ranks import Ranks

_SMALL = 1 << 16
"""Bytes of an array on the host that goes with the words about all of them."""

_Described = tuple[str, np.ndarray] | tuple[str | torch.dtype, tuple[int, ...], bool]
"""A small array itself, after its kind; of others dtype (numpy's as a string), shape, and whether on a device."""


def send(value: Any, to: int, ranks: Ranks) -> None:
    """Give a value to another process, which calls `receive`; neither waits for its GPU.

    Args:
        value: anything that pickles; its tensors and arrays travel as they are, those on a GPU from there.
        to: rank of the other process.
        ranks: the processes.
    """
    for tensor in _message(value, ranks.carrier):
        dist.send(tensor, to)


def receive(source: int, ranks: Ranks) -> Any:
    """The value that another process sends."""
    return _assembled(ranks.carrier, lambda tensor: dist.recv(tensor, source))


def broadcast(value: Any, source: int, ranks: Ranks) -> Any:
    """The value that `source` has, in every process; what the others give is not looked at."""
    if ranks.rank != source:
        return _assembled(ranks.carrier, lambda tensor: dist.broadcast(tensor, source))
    for tensor in _message(value, ranks.carrier):
        dist.broadcast(tensor, source)
    return value


def _message(value: Any, carrier: torch.device) -> list[torch.Tensor]:
    """Size of the words, the words, then every larger array as bytes."""
    header, values = split(value)
    words = bytearray(pickle.dumps((header, [_described(one) for one in values])))
    sent = [torch.tensor([len(words)]), torch.frombuffer(words, dtype=torch.uint8)]
    for one in values:
        if _goes_along(one) or not _count(one):
            continue
        plain = torch.from_numpy(np.ascontiguousarray(one)) if isinstance(one, np.ndarray) else one.detach()
        # without NCCL what is on a GPU goes over the host
        place = plain.device if plain.device.type == carrier.type else torch.device("cpu")
        sent.append(plain.to(place).contiguous().reshape(-1).view(torch.uint8))
    return sent


def _described(value: torch.Tensor | np.ndarray) -> _Described:
    if _goes_along(value):
        return kind_of(value), plain(value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, False
    return value.dtype, tuple(value.shape), value.device.type != "cpu"


def _goes_along(value: torch.Tensor | np.ndarray) -> bool:
    return (isinstance(value, np.ndarray) or value.device.type == "cpu") and value.nbytes <= _SMALL


def _count(value: torch.Tensor | np.ndarray) -> int:
    return value.size if isinstance(value, np.ndarray) else value.numel()


def _assembled(carrier: torch.device, fill: Callable[[torch.Tensor], Any]) -> Any:
    def take(count: int, place: torch.device) -> torch.Tensor:
        tensor = torch.empty(count, dtype=torch.uint8, device=place)
        if count:
            fill(tensor)
        return tensor

    host = torch.device("cpu")
    size = torch.empty(1, dtype=torch.int64)
    fill(size)
    # from a process of the same run, started by the same command
    header, described = pickle.loads(take(int(size), host).numpy().tobytes())
    values: list[torch.Tensor | np.ndarray] = []
    for one in described:
        if len(one) == 2:
            values.append(remade(*one))
            continue
        dtype, shape, there = one
        if isinstance(dtype, str):
            of = np.dtype(dtype)
            values.append(take(math.prod(shape) * of.itemsize, host).numpy().view(of).reshape(shape))
        else:
            came = take(math.prod(shape) * dtype.itemsize, carrier if there else host)
            values.append(came.view(dtype).reshape(shape))
    return joined(header, values)
