"""Chunks while they fill: the copy and its checksums agree whatever comes; blocks are reserved or done without."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from modegap.stores import durable, filling
from modegap.stores.buffers import aligned_empty
from modegap.stores.checksum import crc32c
from modegap.stores.durable import stage_file
from modegap.stores.filling import Filling
from modegap.stores.values import absmax
from modegap.stores.zarrjson import ArraySpec

WIDTH = 8


@pytest.mark.parametrize("inner", [0, 8])
@pytest.mark.parametrize("cuts", [[30], [1, 2, 7, 20], [8, 8, 8, 6], [5, 25]])
@pytest.mark.parametrize("large", [None, 0, 17, 29])
def test_the_sums_are_those_of_the_content(
    monkeypatch: pytest.MonkeyPatch, inner: int, cuts: list[int], large: int | None
) -> None:
    """Also where a value beyond float16 scales what was summed before."""
    monkeypatch.setattr(filling, "_PIECE", 5 * WIDTH * 2)
    rows = np.random.default_rng(0).standard_normal((30, WIDTH)).astype(np.float32)
    if large is not None:
        rows[large, 3] = 3e5
    buffer = aligned_empty(32 * WIDTH * 2)
    buffer[:] = 255
    now = Filling(ArraySpec("p", (100, WIDTH), "float16", 32, inner), 1, buffer)
    for part in np.split(rows, np.cumsum(cuts)[:-1]):
        now.add(part, absmax(part))
    content = now.finish()
    size = len(content) // (4 if inner else 1)
    assert now.sums == [crc32c(content[at : at + size]) for at in range(0, len(content), size)]
    stored = np.frombuffer(content, np.float16).reshape(32, WIDTH)
    assert now.exponent == (0 if large is None else 3)
    np.testing.assert_allclose(stored[:30].astype(np.float32) * 2**now.exponent, rows, rtol=1e-3, atol=1e-3)
    assert not stored[30:].any()
    assert (now.rows, now.overflow) == (30, 0 if large is None else 1)
    assert now.absmax == absmax(rows)


def test_a_shard_that_is_half_full_has_the_sums_of_its_blocks_with_data() -> None:
    now = Filling(ArraySpec("p", (12, WIDTH), "float16", 32, 8), 0, aligned_empty(32 * WIDTH * 2))
    now.add(np.ones((12, WIDTH), np.float16), 1.0)
    content = now.finish()
    assert now.sums == [crc32c(content[:128]), crc32c(content[128:256])]


def test_a_full_disk_shows_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    parts = iter([b"a"])
    with pytest.raises(OSError, match="No space"):
        stage_file(tmp_path / "f", parts, 10)
    assert list(parts) == [b"a"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_file_systems_that_cannot_reserve(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int | None
) -> None:
    def refused(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(code, "no")

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(durable, "_PIECE", 3)
    assert stage_file(tmp_path / "f", [b"0123456789", b"ab"], 12).read_bytes() == b"0123456789ab"
