"""Rows in files that any safetensors reader opens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modegap.engine.layers.rawrows import checksum, read_rows, write_rows
from modegap.stores.checksum import crc32c


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (700, 1001), (0, 4)])
def test_round_trip(dtype: torch.dtype, shape: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(shape).to(dtype)
    file = tmp_path / "rows.safetensors"
    total = write_rows(file, rows)
    assert total == checksum(rows) == crc32c(rows.view(-1).view(torch.uint8).numpy().tobytes())
    assert torch.equal(load_file(file)["rows"], rows)
    found = torch.empty_like(rows)
    read_rows(file, found)
    assert torch.equal(found, rows)


def test_a_file_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.safetensors"
    write_rows(file, torch.ones(700, 1001))
    rows = torch.arange(12.0).view(3, 4)
    write_rows(file, rows)
    assert torch.equal(load_file(file)["rows"], rows)
    with pytest.raises(ValueError, match=r"it holds F32 \[3, 4\], expected torch.float32 \[4, 3\]"):
        read_rows(file, torch.empty(4, 3))


def test_a_file_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.safetensors"
    write_rows(file, torch.ones(10, 10))
    whole = file.read_bytes()
    for size in (0, 5, 30, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"ends after|Expecting|delimiter|Unterminated"):
            read_rows(file, torch.empty(10, 10))
