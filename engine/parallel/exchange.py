"""Values between processes: what lies on a GPU goes from there over NCCL, all else from host to host over gloo."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from modegap.engine.packing import joined, kind_of, plain, remade, split

from .ranks import Ranks, speaking

_SMALL = 1 << 16
"""Bytes of a small array: on the host it goes with the words about all of them, on a GPU in one message with others."""
_ALIGNED = 16

_Described = tuple[str, np.ndarray] | tuple[str | torch.dtype, tuple[int, ...], bool]
"""A small array itself, after its kind; of others dtype (numpy's as a string), shape, and whether on a device."""


def send(value: Any, to: int, ranks: Ranks) -> None:
    """Give a value to another process, which calls `receive`; neither waits for its GPU.

    Args:
        value: anything that pickles; its tensors and arrays travel as they are, those on a GPU from there.
        to: rank of the other process.
        ranks: the processes.

    Raises:
        EngineError: the other process has ended.
    """
    for tensor in _message(value, ranks.carrier):
        with speaking():
            dist.send(tensor, to)


def receive(source: int, ranks: Ranks) -> Any:
    """The value that another process sends."""
    return _assembled(ranks.carrier, lambda tensor: dist.recv(tensor, source))


def broadcast(value: Any, source: int, ranks: Ranks) -> Any:
    """The value that `source` has, in every process; what the others give is not looked at."""
    if ranks.rank != source:
        return _assembled(ranks.carrier, lambda tensor: dist.broadcast(tensor, source))
    for tensor in _message(value, ranks.carrier):
        with speaking():
            dist.broadcast(tensor, source)
    return value


def _message(value: Any, carrier: torch.device) -> list[torch.Tensor]:
    """Size of the words, the words, small arrays of a GPU as one, then every other array as bytes."""
    header, values = split(value)
    words = bytearray(pickle.dumps((header, [_described(one) for one in values])))
    sent = [torch.tensor([len(words)]), torch.frombuffer(words, dtype=torch.uint8)]
    small: list[torch.Tensor] = []
    large: list[torch.Tensor] = []
    for one in values:
        if _goes_along(one):
            continue
        plain = torch.from_numpy(np.ascontiguousarray(one)) if isinstance(one, np.ndarray) else one.detach()
        # without NCCL what is on a GPU goes over the host
        place = plain.device if plain.device.type == carrier.type else torch.device("cpu")
        of = small if _there(one) and plain.nbytes <= _SMALL else large
        of.append(plain.to(place).contiguous().reshape(-1).view(torch.uint8))
    return sent + [one for one in (together(small), *large) if len(one)]


def together(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    """Bytes of several tensors in one [n], each at a multiple of 16."""
    if not pieces:
        return torch.empty(0, dtype=torch.uint8)
    room = [-(-len(piece) // _ALIGNED) * _ALIGNED for piece in pieces]
    whole = torch.empty(sum(room), dtype=torch.uint8, device=pieces[0].device)
    for piece, at in zip(pieces, accumulate(room, initial=0), strict=False):
        whole[at : at + len(piece)].copy_(piece)
    return whole


def apart(whole: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """What `together` joined, pieces of so many bytes, as views."""
    room = [-(-count // _ALIGNED) * _ALIGNED for count in counts]
    return [whole[at : at + n] for n, at in zip(counts, accumulate(room, initial=0), strict=False)]


def _described(value: torch.Tensor | np.ndarray) -> _Described:
    if _goes_along(value):
        return kind_of(value), plain(value)
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, False
    return value.dtype, tuple(value.shape), _there(value)


def _goes_along(value: torch.Tensor | np.ndarray) -> bool:
    return not _there(value) and value.nbytes <= _SMALL


def _there(value: torch.Tensor | np.ndarray) -> bool:
    """Whether it lies on a device."""
    return isinstance(value, torch.Tensor) and value.device.type != "cpu"


def _assembled(carrier: torch.device, fill: Callable[[torch.Tensor], Any]) -> Any:
    def take(count: int, place: torch.device) -> torch.Tensor:
        tensor = torch.empty(count, dtype=torch.uint8, device=place)
        if count:
            with speaking():
                fill(tensor)
        return tensor

    host = torch.device("cpu")
    size = torch.empty(1, dtype=torch.int64)
    with speaking():
        fill(size)
    # from a process of the same run, started by the same command
    header, described = pickle.loads(take(int(size), host).numpy().tobytes())
    counts = [_bytes(one) for one in described]
    small = [i for i, (one, n) in enumerate(zip(described, counts, strict=True)) if _joins(one, n)]
    came: dict[int, torch.Tensor] = {}
    if small:
        room = sum(-(-counts[i] // _ALIGNED) * _ALIGNED for i in small)
        came = dict(zip(small, apart(take(room, carrier), [counts[i] for i in small]), strict=True))
    values: list[torch.Tensor | np.ndarray] = []
    for i, one in enumerate(described):
        if len(one) == 2:
            values.append(remade(*one))
            continue
        dtype, shape, there = one
        plain = came[i] if i in came else take(counts[i], carrier if there else host)
        if isinstance(dtype, str):
            values.append(plain.numpy().view(np.dtype(dtype)).reshape(shape))
        else:
            values.append(plain.view(dtype).reshape(shape))
    return joined(header, values)


def _bytes(one: _Described) -> int:
    """Of an array that travels as such."""
    if len(one) == 2:
        return 0
    dtype, shape, _ = one
    return math.prod(shape) * (np.dtype(dtype) if isinstance(dtype, str) else dtype).itemsize


def _joins(one: _Described, count: int) -> bool:
    return len(one) == 3 and one[2] and count <= _SMALL
