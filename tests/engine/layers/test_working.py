"""Hidden states between layers: parts in several files, files written over, damage named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from modegap.engine.errors import EngineError
from modegap.engine.layers.working import StateWriter, WorkingStore

CPU = torch.device("cpu")
WIDTH, PART = 6, 4 * 6 * 2  # parts of four bf16 rows


def states(seed: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    counts = {0: 9, 1: 4, 2: 0, 3: 1, 4: 17}
    return {
        batch: torch.randn(n, WIDTH, generator=generator).to(torch.bfloat16) for batch, n in counts.items()
    }


def write(store: WorkingStore, k: int, wanted: dict[int, torch.Tensor]) -> StateWriter:
    with store.writer(k) as writer:
        for batch, rows in wanted.items():
            writer.put(batch, rows)
    store.commit(k, writer.sums)
    return writer


def check(store: WorkingStore, k: int, wanted: dict[int, torch.Tensor], order: Sequence[int]) -> None:
    found = list(store.read(k, order))
    assert [batch for batch, _ in found] == list(order)
    for batch, rows in found:
        assert rows.dtype == torch.bfloat16
        assert torch.equal(rows, wanted[batch])


def test_states_come_back_from_their_parts(tmp_path: Path) -> None:
    store = WorkingStore(tmp_path / "w", CPU, PART)
    store.begin({})
    wanted = states(0)
    write(store, 0, wanted)
    assert len(list((tmp_path / "w" / "states" / "0").iterdir())) == 3 + 1 + 1 + 1 + 5
    check(store, 0, wanted, [4, 0, 2, 1, 3])
    check(WorkingStore(tmp_path / "w", CPU), 0, wanted, [0, 1])  # by another process: checksums compared


def test_the_files_of_a_state_are_used_again(tmp_path: Path) -> None:
    store = WorkingStore(tmp_path / "w", CPU, PART)
    store.begin({})
    folder = tmp_path / "w" / "states"
    kept, before = {}, set[int]()
    for k in range(5):
        kept[k] = states(k)
        write(store, k, kept[k])
        store.keep_only(k)
        inodes = {file.stat().st_ino for file in (folder / str(k)).iterdir()}
        if k > 1:
            assert inodes == before
        before = {file.stat().st_ino for file in (folder / "spare").iterdir()} if k else set()
        check(store, k, kept[k], range(5))
    assert sorted(entry.name for entry in folder.iterdir()) == ["4", "4.json", "spare"]


@pytest.mark.parametrize("size", [-1, 40])
def test_damage_names_the_file(tmp_path: Path, size: int) -> None:
    store = WorkingStore(tmp_path / "w", CPU, PART)
    store.begin({})
    write(store, 0, states(0))
    file = tmp_path / "w" / "states" / "0" / "4-2.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 4
    file.write_bytes(data[:size] if size > 0 else data)
    again = WorkingStore(tmp_path / "w", CPU)
    said = "cannot be read" if size > 0 else "fails its checksum"
    with pytest.raises(EngineError, match=rf"4-2\.safetensors {said}"):
        list(again.read(0, range(5)))


def test_a_failed_write_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = WorkingStore(tmp_path / "w", CPU, PART)
    store.begin({})

    def full(file: Path, rows: torch.Tensor) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("modegap.engine.layers.working.write_rows", full)

    def put_many() -> None:
        with store.writer(0) as writer:
            for batch in range(50):  # more than wait before a thread: `put` must not wait for ever
                writer.put(batch, torch.zeros(9, WIDTH))

    with pytest.raises(OSError, match="No space left"):
        put_many()
