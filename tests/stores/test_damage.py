"""Damage is found, named and repaired; reading damaged rows is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.cli import main
from modegap.stores import (
    ActivationStore,
    DamagedChunkError,
    PointPlan,
    RepairReport,
    SampleRows,
    StoreBusyError,
    StoreError,
    StorePlan,
    info,
    repair,
    restore_header,
    verify,
)
from modegap.stores.checksum import crc32c, trailer
from modegap.stores.plan import Profile

PROFILES: list[Profile] = ["raw", "sharded", "archive"]


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
    assert "run `modegap repair`, or what wrote" in damaged["samples/class"].reason
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
    flip(store.path / "pooled/wide/rows/c/0/0", 5)
    (store.path / "_commit/pooled/wide/rows/0.json").write_text("?")
    with pytest.raises(StoreError, match="mode='r\\+'"):
        repair(ActivationStore.open(store.path))
    opened = ActivationStore.open(store.path, "r+")
    report = repair(opened)
    assert report.restored == []
    assert {(d.kind, d.point, d.chunk) for d in report.withdrawn} == {
        ("tokens", "llm_final", 2),
        ("ids", "adapter_output", 1),
        ("pooled", "wide", 0),
    }
    assert verify(opened).ok
    assert 0 < opened.n_complete < 20
    with opened.writer() as writer:
        fill(writer, plan)
    assert files_of(store.path) == wanted
    assert repair(opened) == RepairReport([], [])
    with opened.writer(0, 1), pytest.raises(StoreBusyError, match="being written by process"):
        repair(opened)


@pytest.mark.parametrize("profile", PROFILES)
def test_commit_records_are_made_from_sound_chunks(tmp_path: Path, profile: Profile) -> None:
    """Damaged ones always, missing ones with `rebuild`; not where the scale is in doubt."""
    plan = small_plan(profile=profile)
    store = make_store(tmp_path / "s.zarr", plan)
    wanted, content = files_of(store.path), store.content_hash()
    scaled = {
        (array.spec.path, chunk)
        for array in store.arrays
        for chunk in range(array.spec.n_chunks)
        if store.commits(array).record(chunk).exponent
    }
    assert len(scaled) > 3
    records = [name for name in wanted if name.startswith("_commit/") and name != "_commit/header.json"]
    doubtful = {(Path(n).relative_to("_commit").parent.as_posix(), int(Path(n).stem)) for n in records}
    for name in records[::2]:
        flip(store.path / name, len(wanted[name]) // 2)
    for name in records[1::2]:
        (store.path / name).unlink()
    opened = ActivationStore.open(store.path, "r+")
    report = repair(opened)
    assert len(report.restored) + len(report.withdrawn) == len(records[::2])
    assert not any(
        opened.commits(a).committed[k]
        for a in opened.arrays
        for k in range(a.spec.n_chunks)
        if f"_commit/{a.spec.path}/{k}.json" in records[1::2]
    )
    again = repair(opened, rebuild=True)
    assert again.withdrawn == []
    assert verify(opened).ok
    lost = {(a.spec.path, k) for a in opened.arrays for k in np.flatnonzero(~opened.commits(a).committed)}
    assert lost == scaled < doubtful
    with opened.writer() as writer:
        fill(writer, plan)
    assert opened.content_hash() == content
    chunks = {name: data for name, data in files_of(store.path).items() if not name.startswith("_commit")}
    assert chunks == {name: data for name, data in wanted.items() if not name.startswith("_commit")}


def test_a_chunk_in_doubt_is_not_committed(tmp_path: Path) -> None:
    """Stored values of 32752 or more may be those of a scaled chunk."""
    plan = StorePlan({"p": PointPlan(2, "pooled")}, list("abcd"), chunk_bytes=4)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    with store.writer() as writer:
        for sample, value in enumerate((32736, 32752, 32753 * 2, 65504)):
            writer.put(sample, {"p": SampleRows(pooled=np.array([1, value], np.float32))})
    exponents = [store.commits(store.arrays[0]).record(k).exponent for k in range(4)]
    assert exponents == [0, 0, 1, 0]
    assert store.rows("p", "pooled").chunk(2)[1].max() == 32752
    for record in (store.path / "_commit/pooled/p/rows").iterdir():
        record.unlink()
    store.refresh()
    assert [d.chunk for d in repair(store, rebuild=True).restored] == [0]


def every_byte(data: bytes) -> list[int]:
    """Bytes to damage: all of a small file, some of a larger one."""
    return list(range(len(data))) if len(data) < 400 else list(range(0, len(data), 7))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_flipped_bit_in_any_file_is_found_and_named(tmp_path: Path, profile: Profile) -> None:
    """Chunks, shards and their indices, commit records, columns and every zarr.json; then it is repaired."""
    lengths = np.array([2, 0, 5, 3])
    plan = StorePlan(
        {"p": PointPlan(3, "both", lengths, stream="s"), "q": PointPlan(2, "tokens", lengths, stream="s")},
        [f"id {i}" for i in range(4)],
        {"class": ["x", "y", "x", "y"], "caption": ["a", "bc", None, "d"]},
        {"model": "tiny", "created": "2026-01-01", "versions": {"modegap": "0.1.0"}},
        chunk_bytes=24,
        profile=profile,
        shard_bytes=48,
    )
    store = make_tiny(tmp_path / "s.zarr", plan)
    sound = files_of(store.path)
    assert verify(store, threads=1).ok
    kinds = set()
    for name, content in sound.items():
        for at in every_byte(content)[:: 1 if "/rows/c/" in name else 5 if name.endswith("/0") else 13]:
            file = store.path / name
            flip(file, at, at % 8)
            changed = file.read_bytes()
            where = f"{name}, byte {at}: {content[max(at - 9, 0) : at + 9]!r}, {changed[at : at + 1]!r}"
            kinds.add(found_and_named(store.path, name, where))
            file.write_bytes(content)
    assert kinds == {"tokens", "pooled", "ids", "modality", "metadata", "header"}


def found_and_named(root: Path, name: str, where: str) -> str:
    try:
        opened = ActivationStore.open(root, "r+")
    except StoreError as error:
        opened, problem = None, str(error)
    if opened is None:
        assert name == "zarr.json", where
        assert str(root) in problem, where
        return "header"
    report = verify(opened, threads=1)
    assert not report.ok, where
    (damage,) = report.damaged if "/zarr.json" not in name else report.damaged[:1]
    parts = name.split("/")
    if name.startswith("_commit/") and name != "_commit/header.json":
        assert damage.reason == "its commit record is damaged", where
        parts = [*parts[1:-1], "c", parts[-1].removesuffix(".json")]
    if "c" in parts[3:] and damage.kind != "metadata":
        assert (damage.point, damage.chunk) == (parts[1], int(parts[parts.index("c") + 1])), where
        assert damage.rows[0] < damage.rows[1], where
    else:
        assert damage.kind == "metadata", where
        assert name.startswith(damage.point), where
    return damage.kind


def make_tiny(path: Path, plan: StorePlan) -> ActivationStore:
    store = ActivationStore.create(path, plan)
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for sample, length in enumerate((2, 0, 5, 3)):
            rows = {
                "p": SampleRows(rng.standard_normal((length, 3)), rng.standard_normal(3)),
                "q": SampleRows(rng.standard_normal((length, 2))),
            }
            columns = np.arange(length), np.ones(length, np.uint8)
            writer.put(sample, rows, {"s": columns})
    return store


def test_metadata_are_restored(store: ActivationStore) -> None:
    """By repair where they follow from the rest; ids and labels by the writer, who has the plan."""
    wanted = files_of(store.path)
    follow = [
        "points/llm_final/rows/zarr.json",
        "points/zarr.json",
        "points/llm_hidden_1/length/c/0",
        "points/wide/start/c/0",
        "points/wide/length/zarr.json",
        "_commit/header.json",
    ]
    for name in follow:
        flip(store.path / name, 12)
    opened = ActivationStore.open(store.path, "r+")
    np.testing.assert_array_equal(opened.rows("wide").lengths(), small_plan().streams()["llm"])
    report = repair(opened)
    assert len(report.restored) == 6
    assert report.withdrawn == []
    assert files_of(store.path) == wanted
    (store.path / "points/zarr.json").unlink()
    flip(store.path / "samples/score/c/0", 1)
    with pytest.raises(StoreError, match=r"samples/score.*run what wrote the store again"):
        repair(opened)
    flip(store.path / "samples/id/zarr.json", 30)
    for name in ("length", "start"):
        for point in ("llm_hidden_1", "llm_final", "wide"):
            flip(store.path / f"points/{point}/{name}/c/0", 3)
    with pytest.raises(StoreError, match="row ranges of stream 'llm'"):
        ActivationStore.open(store.path).complete_samples()
    assert not verify(ActivationStore.open(store.path)).ok
    again = ActivationStore.create(store.path, small_plan(), exist_ok=True)
    assert again.n_complete == 20
    assert files_of(store.path) == wanted


def test_the_header_is_restored_from_its_copy(
    store: ActivationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    header = store.path / "zarr.json"
    wanted = header.read_bytes()
    assert restore_header(str(store.path)) is False
    for damage in (b"", b"{", wanted.replace(b"tiny", b"tidy"), wanted.replace(b'"plan"', b'"plam"')):
        header.write_bytes(damage)
        with pytest.raises(StoreError, match="modegap repair"):
            ActivationStore.open(store.path)
        assert main(["repair", str(store.path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["header_restored"] is True
        assert header.read_bytes() == wanted
    header.write_bytes(b"{")
    (store.path / "_commit/header.json").write_bytes(b"{")
    assert main(["repair", str(store.path)]) == 1
    assert "restore it from a copy" in " ".join(capsys.readouterr().err.split())


def test_the_commands(
    store: ActivationStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # the store's path is long: titles would wrap
    path = str(store.path)
    flip(store.path / "points/llm_final/rows/c/2/0", 5)
    flip(store.path / "points/zarr.json", 5)
    assert main(["verify", path, "--json", "--threads", "3"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {(d["point"], d["chunk"]) for d in found["damaged"]} == {("points/zarr.json", 0), ("llm_final", 2)}
    assert main(["verify", path, "--fraction", "0.01", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["chunks_checked"] == len(store.arrays)
    assert main(["verify", path, "--fraction", "2"]) in (1, 2)
    capsys.readouterr()
    assert main(["repair", path]) == 0
    shown = capsys.readouterr().out
    assert "1 restored, 1 withdr" in shown
    assert "24-35" in shown
    assert main(["verify", path]) == 0
    assert "no damage" in capsys.readouterr().out
    assert main(["info", path, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["complete_samples"] < data["samples"] == 20
    assert (data["profile"], data["labels"]["class"]["categories"]) == ("raw", 2)
    assert data["provenance"]["model"] == "tiny"


def test_info(store: ActivationStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(store.path)]) == 0
    shown = capsys.readouterr().out
    for digest in (store.plan_hash, store.content_hash()):
        assert digest.removeprefix("sha256:")[:12] in shown
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
