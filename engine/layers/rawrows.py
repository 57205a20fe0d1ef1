"""Rows [n, d] as safetensors files, read and written through reused buffers.

The library would map a file and copy it out through page faults, or copy it into a bytes object before writing.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import torch

from modegap.stores.checksum import PIECE, crc32c

_cuda: Any = torch.cuda  # its stubs leave streams and events untyped
KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
DTYPES = {name: dtype for dtype, name in KINDS.items()}
_NAME = "rows"


class Buffers:
    """Two host buffers used in turn, pinned where there is a GPU, and a stream for the copies."""

    def __init__(self, device: torch.device) -> None:
        """Allocates nothing yet."""
        self._device, self._cuda = device, device.type == "cuda"
        self._stream: Any = _cuda.Stream(device) if self._cuda else None
        self._memory = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]
        self._copied: list[Any] = [_cuda.Event(), _cuda.Event()] if self._cuda else [None, None]
        self._turn = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A host tensor: one of the two buffers, once its last copy has ended; without a GPU a new one."""
        if not self._cuda:
            return torch.empty(shape, dtype=dtype)
        size = dtype.itemsize * torch.Size(shape).numel()
        self._turn = turn = 1 - self._turn
        self._copied[turn].synchronize()
        if self._memory[turn].numel() < size:
            self._memory[turn] = torch.empty(0, dtype=torch.uint8)
            self._memory[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return self._memory[turn][:size].view(dtype).view(shape)

    def upload(self, host: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """What `take` gave last, on the device; and the event after which it is there."""
        if not self._cuda:
            return host, None
        with _cuda.stream(self._stream):
            there = host.to(self._device, non_blocking=True)
            event = _cuda.Event()
            event.record(self._stream)
            self._copied[self._turn].record(self._stream)
        return there, event

    def download(self, rows: torch.Tensor, after: Any) -> torch.Tensor:
        """Rows of the device on the host, once `after` has happened; valid until the next but one call."""
        host = self.take(tuple(rows.shape), rows.dtype)
        with _cuda.stream(self._stream):
            self._stream.wait_event(after)
            host.copy_(rows, non_blocking=True)
        self._stream.synchronize()
        return host


def write_rows(file: Path, rows: torch.Tensor) -> int:
    """Writes contiguous rows, over what the file held; their CRC-32C."""
    view = _bytes(rows)
    entry = {"dtype": KINDS[rows.dtype], "shape": list(rows.shape), "data_offsets": [0, len(view)]}
    header = json.dumps({_NAME: entry}).encode()
    header += b" " * (-len(header) % 8)
    total = 0
    # Not "wb": pages that a file has already are written several times as fast as new ones.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(descriptor, "wb", buffering=0) as opened:
        opened.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            total = crc32c(piece, total)  # while the piece is in the cache, and the other threads may run
            while len(piece):
                piece = piece[opened.write(piece) or 0 :]
        opened.truncate()
    return total


def read_rows(file: Path, rows: torch.Tensor) -> None:
    """Fills contiguous `rows` with those that `write_rows` wrote.

    Raises:
        ValueError: the file is cut short or holds something else. OSError: it cannot be read.
    """
    with file.open("rb", buffering=0) as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))
        entry = json.loads(opened.read(length))[_NAME]
        if (entry["dtype"], entry["shape"]) != (KINDS[rows.dtype], list(rows.shape)):
            raise ValueError(
                f"it holds {entry['dtype']} {entry['shape']}, expected {rows.dtype} {list(rows.shape)}"
            )
        view, at = _bytes(rows), 0
        while at < len(view):
            got = opened.readinto(view[at:])
            if not got:
                raise ValueError(f"it ends after {at} of {len(view)} bytes")
            at += got


def checksum(rows: torch.Tensor) -> int:
    """CRC-32C of contiguous rows."""
    view, total = _bytes(rows), 0
    for start in range(0, len(view), PIECE):
        total = crc32c(view[start : start + PIECE], total)
    return total


def _bytes(rows: torch.Tensor) -> memoryview:
    flat: Any = rows.view(-1).view(torch.uint8).numpy()
    return memoryview(flat)
