"""Damage is found, named and repaired; reading damaged rows is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import ActivationStore, DamagedChunkError, StoreError, info, repair, verify
from modegap.stores.checksum import crc32c, trailer


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return make_store(tmp_path / "s.zarr", small_plan())


def flip(file: Path, at: int, bit: int = 3) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def test_a_sound_store(store: ActivationStore) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(store, progress=lambda done, total: calls.append((done, total)))
    chunks = sum(array.spec.n_chunks for array in store.arrays)
    assert report.ok
    assert report.damaged == []
    assert report.chunks_checked == report.chunks_committed == chunks == len(calls)
    assert calls[-1] == (report.bytes, report.bytes)
    assert json.loads(json.dumps(report.to_json()))["ok"] is True


@pytest.mark.parametrize("at", [0, 30, -1, -4])
def test_a_flipped_bit_is_found_and_named(store: ActivationStore, at: int) -> None:
    flip(store.path / "points/llm_final/rows/c/2/0", at)
    report = verify(store)
    (damage,) = report.damaged
    assert not report.ok
    assert (damage.point, damage.kind, damage.chunk) == ("llm_final", "tokens", 2)
    assert damage.rows == (24, 36)
    rows = store.rows("llm_final")
    owners = rows.sample_of_row(*damage.rows)
    assert damage.samples == (owners[0], owners[-1] + 1)
    assert "does not match the checksum stored with it" in damage.reason
    assert str(damage).startswith("tokens 'llm_final' chunk 2 (rows 24 to 35, samples")
    with pytest.raises(
        DamagedChunkError, match=r"chunk 2 \(rows 24 to 35 of tokens 'llm_final', samples 'sample-"
    ):
        rows.read(23, 26)
    with pytest.raises(DamagedChunkError, match="modegap repair"):
        rows.chunk(2)
    rows.read(0, 24)


def test_every_single_bit_counts(store: ActivationStore) -> None:
    file = store.path / "pooled/encoder_output/rows/c/1/0"
    sound = file.read_bytes()
    rows = store.rows("encoder_output", "pooled")
    buffer = np.empty((rows.chunk_rows, 12), np.float16)
    for at in range(len(sound)):
        for bit in (0, 7):
            flip(file, at, bit)
            with pytest.raises(DamagedChunkError):
                rows.chunk(1, buffer)
            file.write_bytes(sound)
    rows.chunk(1, buffer)


def test_a_chunk_swapped_for_another_sound_one_is_found(store: ActivationStore) -> None:
    folder = store.path / "points/wide/rows/c"
    (folder / "1/0").write_bytes((folder / "2/0").read_bytes())
    (damage,) = verify(store).damaged
    assert damage.chunk == 1
    assert "checksum of its commit record" in damage.reason
    with pytest.raises(DamagedChunkError, match="commit record"):
        store.rows("wide").chunk(1)


def test_missing_cut_and_longer_chunks(store: ActivationStore) -> None:
    (store.path / "points/wide/rows/c/0/0").unlink()
    cut = store.path / "tokens/llm/modality/c/1"
    cut.write_bytes(cut.read_bytes()[:-2])
    longer = store.path / "tokens/llm/ids/c/0"
    longer.write_bytes(longer.read_bytes() + b"\0")
    reasons = {(d.kind, d.point): d.reason for d in verify(store, threads=1).damaged}
    assert reasons == {
        ("tokens", "wide"): "its file is missing",
        ("modality", "llm"): "its file has 26 bytes, expected 28",
        ("ids", "llm"): "its file has 101 bytes, expected 100",
    }
    with pytest.raises(DamagedChunkError, match="its file is missing"):
        store.rows("wide").read(0, 1)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[1]", '{"rows": 1, "bytes": 2, "crc32c": 3, "samples": [0, 1]}']
)
def test_a_damaged_commit_record(store: ActivationStore, content: str) -> None:
    (store.path / "_commit/points/wide/rows/3.json").write_text(content)
    opened = ActivationStore.open(store.path, "r+")
    (damage,) = verify(opened).damaged
    assert (damage.point, damage.chunk, damage.reason) == ("wide", 3, "its commit record is damaged")
    with pytest.raises(DamagedChunkError, match=r"commit record .* is damaged"):
        opened.rows("wide").chunk(3)


def test_metadata_are_checked_too(store: ActivationStore) -> None:
    flip(store.path / "samples/class/c/0", 4)
    flip(store.path / "samples/id/c/0/0", 0)
    damaged = {damage.point: damage for damage in verify(store).damaged}
    assert set(damaged) == {"samples/class", "samples/id"}
    assert damaged["samples/id"].kind == "metadata"
    assert "restore this file from a copy" in damaged["samples/class"].reason
    with pytest.raises(DamagedChunkError, match="samples/class/c/0 is damaged"):
        _ = ActivationStore.open(store.path).labels


def test_metadata_that_are_sound_but_not_the_plans(store: ActivationStore) -> None:
    file = store.path / "points/llm_final/length/c/0"
    lengths = np.frombuffer(file.read_bytes()[:-4], "<i8").copy()
    lengths[0], lengths[2] = lengths[2], lengths[0]
    content = lengths.tobytes()
    file.write_bytes(content + trailer(crc32c(content)))
    (damage,) = verify(store).damaged
    assert (damage.point, damage.reason) == ("points/llm_final", "it does not match the plan")
    header = store.path / "zarr.json"
    header.write_text(header.read_text().replace('"width": 6', '"width": 8'))
    with pytest.raises(StoreError, match="does not match its hash"):
        ActivationStore.open(store.path)


def test_a_fraction_checks_some_of_every_array(store: ActivationStore) -> None:
    whole = verify(store)
    report = verify(store, fraction=0.3, threads=1)
    assert len(store.arrays) <= report.chunks_checked < whole.chunks_checked / 2
    assert report.chunks_committed == whole.chunks_committed
    for bad in (0, 1.01, -1):
        with pytest.raises(ValueError, match="fraction"):
            verify(store, fraction=bad)
    with pytest.raises(ValueError, match="threads"):
        verify(store, threads=0)


def test_repair_and_resume_restore_every_byte(store: ActivationStore) -> None:
    plan = small_plan()
    wanted = files_of(store.path)
    flip(store.path / "points/llm_final/rows/c/2/0", 5)
    (store.path / "tokens/adapter_output/ids/c/1").unlink()
    (store.path / "_commit/pooled/wide/rows/0.json").write_text("?")
    with pytest.raises(StoreError, match="mode='r\\+'"):
        repair(ActivationStore.open(store.path))
    opened = ActivationStore.open(store.path, "r+")
    assert {(d.kind, d.point, d.chunk) for d in repair(opened)} == {
        ("tokens", "llm_final", 2),
        ("ids", "adapter_output", 1),
        ("pooled", "wide", 0),
    }
    assert verify(opened).ok
    assert 0 < opened.n_complete < 20
    with opened.writer() as writer:
        fill(writer, plan)
    assert files_of(store.path) == wanted
    assert repair(opened) == []


def test_repair_refuses_what_cannot_be_made_again(store: ActivationStore) -> None:
    flip(store.path / "samples/score/c/0", 1)
    with pytest.raises(StoreError, match=r"samples/score.*restore the file from a copy"):
        repair(store)


def test_info(store: ActivationStore) -> None:
    found = info(store)
    data = json.loads(json.dumps(found.to_json()))
    assert data["samples"] == data["complete_samples"] == 20
    assert data["content_hash"] == store.content_hash()
    assert data["provenance"]["model"] == "tiny"
    assert data["labels"]["class"] == {"kind": "category", "missing": 0, "categories": 2}
    assert data["labels"]["score"] == {"kind": "number", "missing": 7, "categories": 0}
    assert found.bytes_on_disk == sum(map(len, files_of(store.path).values()))
    arrays = {(array.point, array.kind): array for array in found.arrays}
    scaled = arrays["llm_hidden_1", "tokens"]
    assert scaled.max_exponent > 0
    assert scaled.overflow > 0
    assert scaled.rows_committed == scaled.shape[0] == store.points["llm_hidden_1"].n_rows
    values = 4 * sum(array.rows_committed * array.shape[1] for array in found.arrays)
    assert found.ratio == values / found.bytes_on_disk


def test_info_of_an_empty_store(tmp_path: Path) -> None:
    found = info(ActivationStore.create(tmp_path / "e.zarr", small_plan()))
    assert found.complete_samples == 0
    assert found.arrays[0].absmax is None
    assert found.ratio == 0
