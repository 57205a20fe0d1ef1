"""Stores behind URLs: the same rows, the same checks, clear errors; requests go out together."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from store_material import make_store, small_plan

from modegap.stores import ActivationStore, DamagedChunkError, StoreError, info, verify
from modegap.stores.plan import Profile
from modegap.stores.remote import RemotePath, place_of

fsspec = pytest.importorskip("fsspec")


class Ranges(SimpleHTTPRequestHandler):
    """Python's file server with single byte ranges, as every object store has them."""

    ranges = True

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if not self.ranges or wanted is None or not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class NoRanges(Ranges):
    ranges = False


def serve(folder: Path, handler: type[Ranges]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(params=["memory", "http"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the folder `tmp_path/there` is seen from afar; stores are made with `publish`."""
    (tmp_path / "there").mkdir()
    if request.param == "memory":
        yield "memory://there"
        fsspec.filesystem("memory").rm("/there", recursive=True)
        return
    pytest.importorskip("aiohttp")
    server = serve(tmp_path / "there", Ranges)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def publish(local: ActivationStore, url: str, tmp_path: Path) -> str:
    name = local.path.name
    if url.startswith("memory"):
        system = fsspec.filesystem("memory")
        if system.exists(f"/there/{name}"):
            system.rm(f"/there/{name}", recursive=True)
        system.put(str(local.path), f"/there/{name}", recursive=True)
    else:
        shutil.rmtree(tmp_path / "there" / name, ignore_errors=True)
        shutil.copytree(local.path, tmp_path / "there" / name)
    return f"{url}/{name}"


@pytest.mark.parametrize("profile", ["raw", "sharded", "archive"])
def test_the_same_from_afar(url: str, tmp_path: Path, profile: Profile) -> None:
    local = make_store(tmp_path / "s.zarr", small_plan(8, profile=profile))
    remote = ActivationStore.open(publish(local, url, tmp_path))
    assert remote.plan_hash == local.plan_hash
    assert remote.content_hash() == local.content_hash()
    assert remote.samples == local.samples
    assert remote.labels == local.labels
    assert remote.n_complete == 8
    assert verify(remote, fraction=0.3).ok
    for point, kind in (("llm_hidden_1", "tokens"), ("encoder_output", "pooled")):
        ours, theirs = local.rows(point, kind), remote.rows(point, kind)  # type: ignore[arg-type]
        for (start, values, scale), wanted in zip(theirs.chunks(threads=3), ours.chunks(), strict=True):
            assert (start, scale) == (wanted[0], wanted[2])
            np.testing.assert_array_equal(values, wanted[1])
        for check in (True, False):
            np.testing.assert_array_equal(
                theirs.read(3, 8, verify=check).astype(np.float32), ours.read(3, 8).astype(np.float32)
            )
    np.testing.assert_array_equal(
        remote.rows("llm_final").modality(4, 30), local.rows("llm_final").modality(4, 30)
    )


def test_info_from_afar(tmp_path: Path) -> None:
    local = make_store(tmp_path / "s.zarr", small_plan(4))
    (tmp_path / "there").mkdir()
    remote = ActivationStore.open(publish(local, "memory://there", tmp_path))
    try:
        assert info(remote).bytes_on_disk == info(local).bytes_on_disk
        assert info(remote).path == "memory://there/s.zarr"
    finally:
        fsspec.filesystem("memory").rm("/there", recursive=True)


def test_damage_and_what_is_missing(url: str, tmp_path: Path) -> None:
    local = make_store(tmp_path / "s.zarr", small_plan())
    file = local.path / "points/llm_final/rows/c/2/0"
    sound = file.read_bytes()
    for content, match in (
        (sound[:30] + bytes([sound[30] ^ 4]) + sound[31:], "does not match the checksum"),
        (sound[:50], "cut short"),
        (None, "is missing"),
    ):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        remote = ActivationStore.open(publish(local, url, tmp_path))
        with pytest.raises(
            DamagedChunkError, match=rf"chunk 2 \(rows 24 to 35 of tokens 'llm_final'.*{match}"
        ):
            remote.rows("llm_final").chunk(2)
        remote.rows("llm_final").chunk(1)
    with pytest.raises(StoreError, match=r"no store at|is not an activation store"):
        ActivationStore.open(f"{url}/none.zarr")


def test_the_index_of_a_shard_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = make_store(tmp_path / "s.zarr", small_plan(profile="sharded"))
    fsspec.filesystem("memory").put(str(local.path), "/indexed/s.zarr", recursive=True)
    store = ActivationStore.open("memory://indexed/s.zarr")
    rows, wanted = store.rows("llm_final"), local.rows("llm_final")
    asked: list[tuple[str, int]] = []
    read_range = RemotePath.read_range
    monkeypatch.setattr(
        RemotePath,
        "read_range",
        lambda self, *at: asked.append((self.inside, at[0])) or read_range(self, *at),
    )
    for chunk in range(rows.n_chunks):
        assert rows.chunk(chunk)[1].tobytes() == wanted.chunk(chunk)[1].tobytes()
    indexes = [file for file, _ in asked if "llm_final" in file]
    assert len(indexes) == len(set(indexes)) < rows.n_chunks
    # another shard in its place: found by its checksums, through its own index
    file = "/indexed/s.zarr/points/llm_final/rows/c/0/0"
    system = fsspec.filesystem("memory")
    content = bytearray(system.cat_file(file))
    system.pipe_file(file, bytes(content[::-1]))
    with pytest.raises(DamagedChunkError, match="index of its shard"):
        rows.chunk(0)
    system.pipe_file(file, bytes(content))
    assert rows.chunk(0)[1].tobytes() == wanted.chunk(0)[1].tobytes()
    system.rm("/indexed", recursive=True)


def test_a_place_without_exclusive_creation_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    store = make_store(tmp_path / "s.zarr", small_plan(2))
    server = serve(tmp_path, Ranges)
    url = f"http://127.0.0.1:{server.server_port}"
    for attempt in (
        lambda: ActivationStore.open(f"{url}/s.zarr", "r+"),
        lambda: ActivationStore.create(f"{url}/new.zarr", small_plan(2)),
    ):
        with pytest.raises(
            StoreError, match=r"cannot be written .*write to a local folder and copy it there"
        ):
            attempt()
    with pytest.raises(StoreError, match="mode='r\\+'"):
        ActivationStore.open(f"{url}/s.zarr").writer()
    server.shutdown()
    server.server_close()
    memory = fsspec.filesystem("memory")
    original = type(memory).pipe_file
    monkeypatch.setattr(
        type(memory), "pipe_file", lambda self, path, value, mode="overwrite": original(self, path, value)
    )
    with pytest.raises(StoreError, match="two writers could not tell each other apart"):
        ActivationStore.create("memory://careless/s.zarr", small_plan(2))
    assert memory.find("/careless") == []
    assert ActivationStore.open(f"file://{store.path}", "r+").path == store.path


def test_a_server_without_ranges_or_without_an_answer(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    make_store(tmp_path / "s.zarr", small_plan(profile="sharded"))
    server = serve(tmp_path, NoRanges)
    url = f"http://127.0.0.1:{server.server_port}/s.zarr"
    rows = ActivationStore.open(url).rows("llm_final")
    with pytest.raises(StoreError, match="ignores byte ranges"):
        rows.chunk(0)
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match=r"cannot read .*the connection"):
        ActivationStore.open(url)
    with pytest.raises(StoreError, match="fsspec"):
        ActivationStore.open("nosuch://bucket/s.zarr")


def test_a_chunk_takes_several_requests_at_once(tmp_path: Path) -> None:
    place = place_of("memory://big/file")
    assert isinstance(place, RemotePath)
    content = np.random.default_rng(0).bytes(9 * 2**20)
    place.system.pipe_file(place.inside, content)
    asked: list[int] = []
    original = place.system.cat_ranges
    place.system.cat_ranges = lambda paths, *rest, **more: (
        asked.append(len(paths)) or original(paths, *rest, **more)
    )
    try:
        buffer = bytearray(9 * 2**20 - 7)
        assert place.fill(memoryview(buffer), 7) is not None
        assert bytes(buffer) == content[7:]
        assert asked == [3]
        assert place.fill(memoryview(buffer), 8) is None
    finally:
        del place.system.cat_ranges
        place.system.rm("/big", recursive=True)


@pytest.mark.parametrize("url", ["dir://a", "zip://a"])
def test_urls_that_lack_something(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=rf"cannot open {url} .*: check the URL"):
        ActivationStore.open(url)
