"""Chunks while they fill: the copy and its checksums agree whatever comes; blocks are reserved or done without."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from modegap.stores import durable, filling, runs
from modegap.stores.buffers import aligned_empty
from modegap.stores.checksum import crc32c, trailer
from modegap.stores.chunkfiles import Encoded, file_bytes
from modegap.stores.draft import Draft
from modegap.stores.filling import Filling
from modegap.stores.runs import Run, Survey
from modegap.stores.values import absmax
from modegap.stores.zarrjson import ArraySpec

WIDTH = 8
SPEC = ArraySpec("p", (4, 2), "int8", 5)


@pytest.mark.parametrize("inner", [0, 8])
@pytest.mark.parametrize("cuts", [[30], [1, 2, 7, 20], [8, 8, 8, 6], [5, 25]])
@pytest.mark.parametrize("large", [None, 0, 17, 29])
def test_the_sums_are_those_of_the_content(
    monkeypatch: pytest.MonkeyPatch, inner: int, cuts: list[int], large: int | None
) -> None:
    """Also where a value beyond float16 scales what was summed before."""
    monkeypatch.setattr(filling, "_COPIED", 5 * WIDTH * 2)
    rows = np.random.default_rng(0).standard_normal((30, WIDTH)).astype(np.float32)
    if large is not None:
        rows[large, 3] = 3e5
    buffer = aligned_empty(32 * WIDTH * 2)
    buffer[:] = 255
    now = Filling(ArraySpec("p", (100, WIDTH), "float16", 32, inner), 1, lambda _: buffer)
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
    now = Filling(ArraySpec("p", (12, WIDTH), "float16", 32, 8), 0, aligned_empty)
    now.add(np.ones((12, WIDTH), np.float16), 1.0)
    content = now.finish()
    assert now.sums == [crc32c(content[:128]), crc32c(content[128:256])]


def test_a_full_disk_shows_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(descriptor: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    parts = iter([memoryview(b"a")])
    with pytest.raises(OSError, match="No space"):
        Draft(SPEC, 0, tmp_path / "0/0", threading.Semaphore(0)).write(parts, 0)
    assert list(parts) == [b"a"]
    assert not list((tmp_path / "0").iterdir())


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
    monkeypatch.setattr(durable, "PIECE", 3)
    draft = Draft(SPEC, 0, tmp_path / "0/0", threading.Semaphore(0))
    draft.write([memoryview(b"0123456789")], 0)
    assert draft.finish([(10, b"ab")]).read_bytes() == b"0123456789ab"


@pytest.mark.parametrize("inner", [0, 8])
@pytest.mark.parametrize("kinds", ["ddd", "dsd", "sds", "ssd", "dds"])
@pytest.mark.parametrize("large", [False, True])
def test_what_goes_to_the_file_directly_and_by_the_buffer_is_one_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: int, kinds: str, large: bool
) -> None:
    """Runs in pieces, single rows between them, and a value at the end that scales everything before it."""
    monkeypatch.setattr(filling, "DIRECT", 2 * WIDTH * 2)
    monkeypatch.setattr(runs, "PIECE", 4 * WIDTH * 2)
    spec = ArraySpec("p", (100, WIDTH), "float16", 32, inner)
    rows = np.random.default_rng(0).standard_normal((32, WIDTH)).astype(np.float16)
    draft = Draft(spec, 1, tmp_path / "1/0", threading.Semaphore(large))
    now = Filling(spec, 1, aligned_empty, draft)
    at = 0
    for kind in kinds:
        for count in (9,) if kind == "d" else (1, 1):
            part = rows[at : at + count]
            run = now.run(part)
            assert (run is not None) == (kind == "d")
            if run is None:
                now.add(part, absmax(part))
            else:
                never_counted = Run(rows[::-1][:count].copy(), now.rows, spec.block_rows, 0)
                now.write(never_counted, look=False)
                now.write(run, look=True)
                now.count(run)
            at += count
    true = rows.astype(np.float32)
    rest = true[at:].copy()
    rest[-1, 0] = 3e5 if large else 2
    now.add(rest, absmax(rest))
    assert bool(now.written) is (not large)
    encoded = Encoded(spec, now.finish(), now.sums)
    found = draft.finish(encoded.parts(now.written)).read_bytes()
    assert len(found) == encoded.bytes == file_bytes(spec, 1)
    size = spec.block_bytes
    blocks = [found[k * (size + 4) : k * (size + 4) + size] for k in range(spec.parts)]
    assert now.sums == [crc32c(block) for block in blocks]
    assert all(found[k * (size + 4) + size :][:4] == trailer(now.sums[k]) for k in range(spec.parts))
    stored = np.frombuffer(b"".join(blocks), np.float16).reshape(32, WIDTH)
    true[at:] = rest
    np.testing.assert_array_equal(stored, np.ldexp(true, -now.exponent).astype(np.float16))
    assert (now.absmax, now.overflow, now.exponent) == ((3e5, 1, 3) if large else (absmax(true), 0, 0))


def test_a_file_that_changed_before_it_is_read_back_is_noticed(tmp_path: Path) -> None:
    spec = ArraySpec("p", (100, WIDTH), "float16", 32)
    now = Filling(spec, 0, aligned_empty, Draft(spec, 0, tmp_path / "0/0", threading.Semaphore(1)))
    run = now.run(np.ones((9, WIDTH), np.float16))
    assert run is not None
    now.write(run, look=True)
    now.count(run)
    (file,) = (tmp_path / "0").iterdir()
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="not what was written"):
        now.add(np.full((1, WIDTH), 1e5, np.float32), 1e5)


def test_a_run_that_is_not_finite_has_no_largest_value() -> None:
    rows = np.ones((9, WIDTH), np.float16)
    for bad in (np.nan, np.inf, -np.inf):
        rows[7, 3] = bad
        run = Run(rows, 0, 32, 0)
        Survey([run]).work()
        assert not np.isfinite(run.top)
