"""A store may come from anyone: nothing in it is executed, leaves its folder, or takes memory it has no use for."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_material import files_of, fill, make_store, small_plan

from modegap.stores import (
    ActivationStore,
    PointPlan,
    StoreError,
    StorePlan,
    info,
    repair,
    restore_header,
    verify,
)
from modegap.stores.checksum import crc32c, trailer
from modegap.stores.commits import CommitRecord
from modegap.stores.layout import Header
from modegap.stores.origin import canonical_json, sha256
from modegap.stores.plan import Profile, plan_hash

STORES = Path(__file__).parents[2] / "stores"
PROFILES: list[Profile] = ["raw", "sharded", "archive"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[Profile, ActivationStore]:
    folder = tmp_path_factory.mktemp("made")
    return {p: make_store(folder / f"{p}.zarr", small_plan(8, profile=p)) for p in PROFILES}


@pytest.fixture
def store(made: dict[Profile, ActivationStore], tmp_path: Path) -> ActivationStore:
    return ActivationStore.open(shutil.copytree(made["raw"].path, tmp_path / "s.zarr"), "r+")


@contextlib.contextmanager
def little_memory(limit: int = 2**26) -> Iterator[None]:
    """Fail if much more is allocated at a time than a small store takes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def look_at_everything(path: Path) -> bool:
    """Open, describe, verify and read a store; return whether it seems sound.

    Raises:
        Exception: anything but a StoreError would reach a user as a traceback.
    """
    try:
        sound = _looked(path)
    except StoreError as error:
        sound, message = False, str(error)
    else:
        message = ""
    assert "\n" not in message
    return sound


def _looked(path: Path) -> bool:
    store = ActivationStore.open(path)
    info(store)
    _ = store.labels
    sound = verify(store, threads=1).ok
    for name, point in store.points.items():
        for kind in ("tokens", "pooled"):
            if point.rows in (kind, "both"):
                rows = store.rows(name, kind)  # type: ignore[arg-type]
                rows.read(0, rows.n_valid_rows, np.empty((rows.n_valid_rows, rows.shape[1]), np.float32))
                rows.token_ids(0, rows.n_valid_rows)
    return sound


def set_header(path: Path, plan: Any, provenance: Any = None) -> None:
    """Write a header that is right about itself, as whoever makes a store on purpose can."""
    document = json.loads((path / "zarr.json").read_text())
    attributes = document["attributes"]
    provenance = attributes["provenance"] if provenance is None else provenance
    with contextlib.suppress(Exception):
        attributes["plan_hash"] = plan_hash(plan, provenance)
    attributes |= {"plan": plan, "provenance": provenance, "profile": plan.get("profile", "raw")}
    attributes["digest"] = Header(plan, provenance, attributes["plan_hash"]).digest()
    (path / "zarr.json").write_text(json.dumps(document))


NAMES = ["../x", "/etc", "a/../../b", "..", ".", "", "a\0b", "__proto__", "c:\\x", "x" * 300, "~root", "a/b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["points", "streams", "labels"])
def test_names_in_a_header_cannot_leave_the_store(store: ActivationStore, name: str, what: str) -> None:
    plan = store.plan
    plan[what][name] = plan[what].pop(next(iter(plan[what])))
    if what == "streams":
        for point in plan["points"].values():
            point["stream"] = name if point["stream"] not in plan["streams"] else point["stream"]
    set_header(store.path, plan)
    with pytest.raises(StoreError, match=r"the plan in .* is not valid"):
        ActivationStore.open(store.path)


HUGE = [2**70, 2**62, 2**40, -1, 0, 1.5, True, "8", None, [], {}]


@pytest.mark.parametrize("value", HUGE, ids=repr)
def test_numbers_in_a_header(store: ActivationStore, value: Any) -> None:
    """Every number of the plan, one at a time, with the hashes made to match."""
    sound = store.plan
    paths = [("n_samples",)]
    paths += [("points", p, key) for p, fields in sound["points"].items() for key in fields]
    paths += [("streams", s, key) for s, fields in sound["streams"].items() for key in fields]
    paths += [("points", "wide", "shard_rows"), ("points", "wide", "more"), ("labels", "class", "kind")]
    with little_memory():
        for path in paths:
            plan = copy.deepcopy(sound)
            at = plan
            for key in path[:-1]:
                at = at[key]
            if path[-1] in at and at[path[-1]] == value and type(at[path[-1]]) is type(value):
                continue
            at[path[-1]] = value
            set_header(store.path, plan)
            assert not look_at_everything(store.path), path


def test_a_header_that_claims_more_than_there_is(store: ActivationStore) -> None:
    """A plan that could be one, of samples and rows that nobody stored."""
    for n_samples in (9, 2**28):
        plan = store.plan
        plan["n_samples"] = n_samples
        set_header(store.path, plan)
        with pytest.raises(StoreError):
            ActivationStore.open(store.path).complete_samples()
    plan = store.plan
    for point in plan["points"].values():
        point["n_rows"] = 2**40 if point["stream"] == "llm" else point["n_rows"]
        point["chunk_rows"] = 2**17 if point["stream"] == "llm" else point["chunk_rows"]
    plan["streams"]["llm"] |= {"n_rows": 2**40, "chunk_rows": 2**14}
    set_header(store.path, plan)
    assert not look_at_everything(store.path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_json_in_any_document(made: dict[Profile, ActivationStore], data: st.DataObject) -> None:
    """One value of one `zarr.json` or commit record replaced by any other, with its checksum made to match."""
    profile = data.draw(st.sampled_from(PROFILES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(made[profile].path, Path(folder) / "s.zarr"))
        names = sorted(name for name in files_of(path) if name.endswith(".json"))
        name = data.draw(st.sampled_from(names))
        document = json.loads((path / name).read_text())
        spots = list(spots_of(document))
        holder, key = data.draw(st.sampled_from(spots))
        holder[key] = data.draw(JSON)
        if name == "zarr.json":
            attributes = document.get("attributes")
            if isinstance(attributes, dict) and isinstance(attributes.get("plan"), dict):
                with contextlib.suppress(Exception):
                    set_header_document(attributes)
        elif name.startswith("_commit/points") or name.startswith("_commit/pooled"):
            document.pop("check", None)
            text = json.dumps(document)
            document["check"] = crc32c(text.encode())
        (path / name).write_text(json.dumps(document))
        with little_memory():
            look_at_everything(path)
        assert [entry.name for entry in Path(folder).iterdir()] == ["s.zarr"]


def set_header_document(attributes: dict[str, Any]) -> None:
    attributes["plan_hash"] = plan_hash(attributes["plan"], attributes["provenance"])
    known = {
        k: attributes[k] for k in ("format", "schema_version", "profile", "plan_hash", "provenance", "plan")
    }
    attributes["digest"] = sha256(canonical_json(known))


def spots_of(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from spots_of(inner)


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=80) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_commit_record(made: dict[Profile, ActivationStore], content: bytes) -> None:
    array = made["raw"].arrays[0]
    with pytest.raises(ValueError):  # noqa: PT011
        CommitRecord.parse(content, array.spec, 0)


def test_deep_and_large_documents(store: ActivationStore) -> None:
    sound = files_of(store.path)
    for name in (
        "zarr.json",
        "_commit/points/wide/rows/0.json",
        "samples/class/zarr.json",
        "_commit/header.json",
    ):
        for content in (
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"1" * 6000,
            b"\xff\xfe",
            b'"\\ud800"',
            b"NaN",
            b"",
        ):
            (store.path / name).write_bytes(content)
            assert not look_at_everything(store.path)
        with (store.path / name).open("wb") as file:
            file.truncate(2**40)
        with little_memory():
            assert not look_at_everything(store.path)
            with contextlib.suppress(StoreError):
                restore_header(str(store.path))
        (store.path / name).write_bytes(sound[name])
    assert look_at_everything(store.path)


@pytest.mark.parametrize("profile", PROFILES)
def test_any_bytes_in_a_chunk(made: dict[Profile, ActivationStore], tmp_path: Path, profile: Profile) -> None:
    """Shard indices that point anywhere, compressed rows that claim any size; all with right checksums."""
    path = Path(shutil.copytree(made[profile].path, tmp_path / "s.zarr"))
    file = path / "points/llm_final/rows/c/0/0"
    sound = file.read_bytes()
    rng = random.Random(0)
    contents: list[bytes] = [b"", b"\0" * 4, bytes(len(sound)), sound * 2, rng.randbytes(len(sound))]
    if profile == "sharded":
        index = len(sound) - 4 - 16 * 3
        for value in (2**64 - 2, 2**63, 2**63 - 1, 2**31, len(sound), len(sound) - 1, 1, 0):
            for entry in range(6):
                body = bytearray(sound[:-4])
                body[index + 8 * entry : index + 8 * entry + 8] = value.to_bytes(8, "little")
                contents.append(bytes(body) + trailer(crc32c(bytes(body[index:]))))
    if profile == "archive":
        for at in range(16):
            for value in (0, 1, 0x7F, 0xFF):
                body = bytearray(sound[:-4])
                body[at] = value
                contents.append(bytes(body) + trailer(crc32c(bytes(body))))
    with little_memory():
        for content in contents:
            file.write_bytes(content)
            if content != sound:
                assert not look_at_everything(path) or stored_rows_equal(path, made[profile])
        with file.open("wb") as opened:
            opened.truncate(2**40)
        assert not look_at_everything(path)
        # A record that agrees with it.
        record = path / "_commit/points/llm_final/rows/0.json"
        found = CommitRecord.parse(record.read_bytes(), made[profile].arrays[2].spec, 0)
        assert made[profile].arrays[2].owner == "llm_final"
        record.write_bytes(dataclasses.replace(found, bytes=2**40).dump())
        assert not look_at_everything(path)


def stored_rows_equal(path: Path, whole: ActivationStore) -> bool:
    """Some headers of blosc leave the content as it was."""
    ours, theirs = ActivationStore.open(path).rows("llm_final"), whole.rows("llm_final")
    return ours.read(0, 9).tobytes() == theirs.read(0, 9).tobytes()


def test_links_to_files_are_read_and_checked(store: ActivationStore, tmp_path: Path) -> None:
    """A download may consist of links to a cache; what they lead to must match all checksums."""
    linked = tmp_path / "linked.zarr"
    for name in files_of(store.path):
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(store.path / name)
    assert look_at_everything(linked)
    secret = tmp_path / "secret"
    secret.write_bytes(b"do not read me aloud" * 10)
    for name in (
        "points/wide/rows/c/0/0",
        "samples/id/c/0/0",
        "zarr.json",
        "_commit/points/wide/rows/0.json",
    ):
        (linked / name).unlink()
        (linked / name).symlink_to(secret)
        with pytest.raises(StoreError) as caught:
            ActivationStore.open(linked).rows("wide").read(0, 3)
        assert "aloud" not in str(caught.value)
        assert not look_at_everything(linked)
        (linked / name).unlink()
        (linked / name).symlink_to(store.path / name)


def test_pipes_and_devices_are_not_waited_for(store: ActivationStore) -> None:
    sound = files_of(store.path)
    for name in (
        "zarr.json",
        "points/wide/rows/c/0/0",
        "_commit/points/wide/rows/0.json",
        "samples/id/c/0/0",
        "samples/class/zarr.json",
        "points/zarr.json",
    ):
        file = store.path / name
        file.unlink()
        os.mkfifo(file)
        assert not look_at_everything(store.path), name
        file.unlink()
        file.symlink_to("/dev/zero")
        with little_memory():
            assert not look_at_everything(store.path), name
        file.unlink()
        file.write_bytes(sound[name])


@pytest.mark.parametrize(
    "folder",
    [
        "points/wide/rows/c/0",
        "points/wide/rows/c",
        "points/wide",
        "points",
        "_commit",
        "_commit/points/wide/rows",
        "_owner",
        "tokens/llm/ids/c",
    ],
)
def test_writing_does_not_follow_links(store: ActivationStore, tmp_path: Path, folder: str) -> None:
    """A writer, and repair, refuse a store with a link where a folder belongs; nothing outside changes."""
    outside = tmp_path / "outside"
    place = store.path / folder
    if place.exists():
        shutil.move(place, outside)
    else:
        outside.mkdir()
    (outside / ".0.0123456789ab.tmp").write_bytes(b"precious")
    (outside / "0-8.json").write_bytes(b"precious")
    place.symlink_to(outside)
    before = files_of(outside)
    (store.path / "points/wide/rows/c/0/0").unlink(missing_ok=True)
    (store.path / "tokens/llm/ids/c/0").unlink(missing_ok=True)
    before = files_of(outside)

    def resume() -> None:
        plan = small_plan(8)
        with ActivationStore.create(store.path, plan, exist_ok=True).writer() as writer:
            fill(writer, plan)

    with pytest.raises(StoreError, match="is a link or a file where a folder of the store belongs"):
        resume()
    with contextlib.suppress(StoreError):
        repair(ActivationStore.open(store.path, "r+"), rebuild=True)
    assert files_of(outside) == before


def test_nothing_is_unpickled_or_run(store: ActivationStore, tmp_path: Path) -> None:
    """Pickles lie where data should be; no module of the stores knows how to load one, or to run anything."""
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    payload = pickle.dumps(Payload())
    sound = files_of(store.path)
    for name in (
        "zarr.json",
        "_commit/header.json",
        "_commit/points/wide/rows/0.json",
        "points/wide/rows/zarr.json",
        "points/wide/rows/c/0/0",
        "points/wide/length/c/0",
        "samples/id/c/0/0",
        "samples/class/zarr.json",
        "samples/class/c/0",
        "tokens/llm/ids/c/0",
        "_owner/0-8.json",
    ):
        (store.path / name).parent.mkdir(exist_ok=True)
        (store.path / name).write_bytes(payload)
        look_at_everything(store.path)
        with contextlib.suppress(StoreError):
            repair(ActivationStore.open(store.path, "r+"))
        shutil.rmtree(store.path / "_owner", ignore_errors=True)
        for other, content in sound.items():
            if not (store.path / other).is_file() or (store.path / other).read_bytes() != content:
                (store.path / other).write_bytes(content)
        assert not marker.exists()
    code = (
        "import sys\n"
        "from modegap.stores import ActivationStore, verify, info, repair\n"
        "store = ActivationStore.open(sys.argv[1], 'r+')\n"
        "verify(store); info(store); repair(store)\n"
        "for name in store.points: store.rows(name, 'tokens' if store.points[name].n_rows else 'pooled').read(0, 3)\n"
        "bad = {'pickle', 'cPickle', '_pickle', 'marshal', 'shelve', 'dill', 'cloudpickle'} & set(sys.modules)\n"
        "print(sorted(bad - set(before)))\n"
    )
    before = (
        "import sys; import numpy, logging, concurrent.futures, hashlib, uuid; before = list(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + code, str(store.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    for file in STORES.glob("*.py"):
        text = file.read_text()
        for word in (
            "import pickle",
            "pickle.",
            "eval(",
            "exec(",
            "os.system",
            "subprocess",
            "allow_pickle=True",
        ):
            assert word not in text, (file.name, word)


@settings(max_examples=80, deadline=None)
@given(
    name=st.text(max_size=12)
    | st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "~", "\0", "*", "%2e%2e", " "]), max_size=6).map(
        "".join
    )
)
def test_no_name_leaves_the_store(name: str) -> None:
    """A name is refused, or what is made for it lies in the store."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s.zarr"
        try:
            plan = StorePlan(
                {name: PointPlan(2, "tokens", np.array([1]), stream=name)}, ["../../id"], {name: ["../x"]}
            )
        except ValueError:
            return
        store = ActivationStore.create(place, plan)
        assert [entry.name for entry in Path(folder).iterdir()] == ["s.zarr"]
        for array in store.arrays:
            file = array.spec.chunk_file(place, 0).resolve()
            assert file.is_relative_to(place.resolve())
        assert (place / "points" / name / "rows").is_dir()
        assert store.samples == ["../../id"]
        assert store.labels[name].values == ("../x",)
