"""Checksums of a store's chunks on the GPU: eight chunks of 16 MiB, as a buffer of `stream` holds them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch

from bench.harness import Call, Case
from modegap.kernels import crc32c
from modegap.kernels.crc32c.reference import crc32c as by_table

CHUNKS, CHUNK_BYTES = 8, 16 << 20


def checksum_cases(d: int) -> Iterator[Case]:
    rows = CHUNK_BYTES // (2 * d)
    inputs = [torch.randn(CHUNKS, rows * d, device="cuda").half() for _ in range(3)]
    want = by_table(inputs[0]).tolist()
    calls: dict[str, list[Call]] = {
        "modegap": [lambda x=x: crc32c(x).tolist() for x in inputs],
        "torch, table of 256": [lambda x=x: by_table(x).tolist() for x in inputs],
    }
    missing = {}
    try:
        host = importlib.import_module("awscrt.checksums").crc32c
    except ImportError:
        missing["copy to the host, awscrt"] = "awscrt is not installed"
    else:
        calls["copy to the host, awscrt"] = [
            lambda x=x: [host(block.numpy().data) for block in x.cpu().view(torch.uint8)] for x in inputs
        ]
    yield Case(
        "checksums of chunks",
        d,
        calls,
        lambda got: float(got != want),
        0.0,
        bytes=float(CHUNKS * CHUNK_BYTES),
        missing=missing,
    )
