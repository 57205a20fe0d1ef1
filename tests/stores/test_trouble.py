"""Disks that are full, places that may not be written or read, stores that vanish: nothing committed is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_material import files_of, fill, make_store, small_plan

from modegap.cli import main
from modegap.stores import ActivationStore, DamagedChunkError, StoreError, info, repair, verify
from modegap.stores.plan import Profile

PROFILES: list[Profile] = ["raw", "sharded", "archive"]
NOBODY = 65534


def message_of(action: Callable[[], Any]) -> str:
    with pytest.raises(StoreError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert not isinstance(caught.value, DamagedChunkError), message
    return message


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def pages(root: Path) -> int:
    """What files take on a file system in memory."""
    return sum(-(-len(content) // 4096) for content in files_of(root).values())


@pytest.mark.parametrize("profile", PROFILES)
def test_a_full_disk(tiny_disk: Path, tmp_path: Path, profile: Profile) -> None:
    """The writer stops with what is needed and free; when space returns it goes on, in place."""
    plan = small_plan(80, chunk_bytes=400, profile=profile)
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tiny_disk / "s.zarr", plan)
    ballast = tiny_disk / "ballast"
    rows = pages(whole.path) - pages(store.path)
    ballast.write_bytes(b"\0" * (shutil.disk_usage(tiny_disk).free - rows * 4096 // 2))

    def write() -> None:
        with ActivationStore.open(store.path, "r+").writer() as writer:
            fill(writer, plan)

    message = message_of(write)
    assert "no space left for" in message
    assert "bytes needed" in message
    assert "run the same command again to resume" in message
    kept = files_of(store.path)
    assert not [name for name in kept if name.endswith(".tmp")]
    opened = ActivationStore.open(store.path)
    assert verify(opened).ok
    assert 0 < opened.n_complete < 80
    # A claim needs a little space too; the message is the same.
    assert "no space left" in message_of(write)
    ballast.unlink()
    write()
    finished = files_of(store.path)
    assert finished == files_of(whole.path)
    assert all(finished[name] == data for name, data in kept.items() if not name.startswith("_owner"))


def test_no_space_for_the_store_itself(tiny_disk: Path) -> None:
    (tiny_disk / "ballast").write_bytes(b"\0" * (shutil.disk_usage(tiny_disk).free - 20_000))
    message = message_of(lambda: ActivationStore.create(tiny_disk / "s.zarr", small_plan(200)))
    assert "no space left" in message
    assert [file.name for file in tiny_disk.iterdir()] == ["ballast"]


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The kernel refuses to make any file larger (EFBIG), as a quota or a small disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_limit_on_the_size_of_files(tmp_path: Path, profile: Profile) -> None:
    """Needs no privileges: chunks of 400 bytes do not fit, those of smaller arrays do."""
    plan = small_plan(30, chunk_bytes=400, profile=profile)
    whole = make_store(tmp_path / "whole.zarr", plan)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)

    def write() -> None:
        with ActivationStore.open(store.path, "r+").writer() as writer:
            fill(writer, plan)

    with no_file_beyond(300):
        message = message_of(write)
    assert "no space left" in message
    assert os.strerror(errno.EFBIG) in message
    assert not list(store.path.rglob("*.tmp"))
    assert verify(ActivationStore.open(store.path)).ok
    write()
    assert files_of(store.path) == files_of(whole.path)


def test_no_space_while_repairing(tmp_path: Path) -> None:
    plan = small_plan()
    store = make_store(tmp_path / "s.zarr", plan)
    wanted = files_of(store.path)
    (store.path / "points/wide/rows/zarr.json").write_text("{")
    opened = ActivationStore.open(store.path, "r+")
    report = verify(opened)
    with no_file_beyond(250):
        message_of(lambda: repair(opened, report))
    assert len(repair(opened).restored) == 1
    assert files_of(store.path) == wanted


def test_a_file_system_that_is_read_only(tiny_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = small_plan(6, chunk_bytes=2000)
    store = make_store(tiny_disk / "s.zarr", plan)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    try:
        opened = ActivationStore.open(store.path, "r+")
        for action in (
            lambda: opened.writer(),
            lambda: repair(opened),
            lambda: ActivationStore.create(tiny_disk / "t.zarr", plan),
        ):
            assert "read-only for this user" in message_of(action)
        assert verify(opened).ok
        assert ActivationStore.create(store.path, plan, exist_ok=True).n_complete == 6
        assert main(["info", str(store.path)]) == 0
        assert main(["repair", str(store.path)]) == 1
        assert "read-only for this user" in " ".join(capsys.readouterr().err.split())
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan(2))
    original = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code))
        return original(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        message = message_of(lambda: store.writer())
        assert "read-only for this user" in message
        assert "permissions" in message
        rows = ActivationStore.open(store.path).rows("wide")
        assert len(rows.read(0, rows.n_valid_rows)) == 3


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can enter: pytest's own are private."""
    folder = Path(tempfile.mkdtemp(prefix="modegap-test-"))
    folder.chmod(0o755)
    yield folder
    for place, folders, _ in os.walk(folder):
        for name in folders:
            (Path(place) / name).chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may read everything; be nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize(
    "hidden",
    [
        "",
        "zarr.json",
        "points/llm_final/rows/c/1/0",
        "points/llm_final/rows/c/1",
        "points/llm_hidden_1/length/zarr.json",
        "samples/id/c/0/0",
        "_commit/points/llm_final/rows",
        "_commit/points/llm_final/rows/1.json",
    ],
)
def test_what_may_not_be_read(shared: Path, hidden: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said so, it is not taken for damage, and nothing is withdrawn."""
    store = make_store(shared / "s.zarr", small_plan(8))
    wanted = files_of(store.path)
    place = store.path / hidden

    def read() -> None:
        opened = ActivationStore.open(store.path)
        info(opened)
        rows = opened.rows("llm_final")
        rows.read(0, rows.n_valid_rows)

    # what is imported at its first use: nobody may not read a checkout under root's home
    read()
    assert main(["info", str(store.path)]) == main(["verify", str(store.path)]) == 0
    place.chmod(0)
    with somebody_else():
        message = message_of(read)
        assert main(["info", str(store.path)]) == (0 if hidden.endswith("c/1/0") else 1)
        assert main(["verify", str(store.path)]) == 1
    assert "cannot read" in message
    assert "change its permissions, or run as another user" in message
    place.chmod(0o755)
    assert "Traceback" not in capsys.readouterr().err
    assert files_of(store.path) == wanted


def test_a_store_that_is_deleted_while_it_is_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan())
    opened = ActivationStore.open(store.path)
    late = ActivationStore.open(store.path)
    rows = opened.rows("llm_final")
    rows.chunk(0)
    shutil.move(store.path, tmp_path / "moved.zarr")
    gone = "has been deleted or moved while it was in use"
    for action in (
        lambda: rows.chunk(1),
        lambda: rows.read(30, 40),
        lambda: list(rows.chunks()),
        lambda: verify(opened),
        lambda: late.n_complete,
        lambda: late.rows("wide"),
    ):
        assert gone in message_of(action)
    assert "no store at" in message_of(lambda: ActivationStore.open(store.path))


def test_a_chunk_that_is_deleted_is_damage(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", small_plan())
    shutil.rmtree(store.path / "points/llm_final/rows/c/1")
    with pytest.raises(DamagedChunkError, match="its file is missing"):
        store.rows("llm_final").chunk(1)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_store_that_is_deleted_while_it_is_written(tmp_path: Path, profile: Profile) -> None:
    """The writer stops, and does not leave the ruins of a store behind."""
    plan = small_plan(40, profile=profile)
    store = ActivationStore.create(tmp_path / "s.zarr", plan)

    def write() -> None:
        with store.writer() as writer:
            fill(writer, plan, range(10))
            shutil.rmtree(store.path)
            fill(writer, plan, range(10, 40))

    message = message_of(write)
    assert "was deleted or moved while it was written" in message
    assert not store.path.exists()
    with ActivationStore.create(store.path, plan, exist_ok=True).writer() as writer:
        fill(writer, plan)
    assert verify(ActivationStore.open(store.path)).ok


def test_empty_folders_may_be_lost_in_a_copy(tmp_path: Path) -> None:
    """Archives and object stores keep no empty folders."""
    plan = small_plan()
    store = ActivationStore.create(tmp_path / "s.zarr", plan)
    copy = tmp_path / "copy.zarr"
    for name, content in files_of(store.path).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    assert ActivationStore.open(copy).n_complete == 0
    for again in (ActivationStore.open(copy, "r+"), ActivationStore.create(copy, plan, exist_ok=True)):
        with again.writer() as writer:
            fill(writer, plan, writer.todo.tolist()[:10])
    with again.writer() as writer:
        fill(writer, plan)
    assert files_of(copy) == files_of(make_store(tmp_path / "whole.zarr", plan).path)
