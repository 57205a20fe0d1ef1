"""Nothing of a store is lost on the way out and back: both kinds of rows, token columns, labels, streams."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_material import N, check_same, full_store, values

from modegap.cli import main
from modegap.engine.errors import EngineError
from modegap.engine.interchange import export_store, exporting, import_store, importing
from modegap.stores import ActivationStore, PointPlan, StoreError, StorePlan, verify
from modegap.stores.plan import Profile

OUTS = {"hdf5": "out.h5", "npy": "out", "npz": "out.npz", "safetensors": "out.safetensors", "raw": "out"}
KINDS = {"pooled": ("pooled",), "tokens": ("tokens",), "both": ("pooled", "tokens")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return full_store(tmp_path_factory.mktemp("full") / "s.zarr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", OUTS)
def test_everything_there_and_back(store: ActivationStore, tmp_path: Path, form: str, kind: str) -> None:
    if form == "hdf5":
        pytest.importorskip("h5py")
    out = export_store(store, tmp_path / OUTS[form], format=form, rows=kind)  # type: ignore[arg-type]
    back = import_store(out, tmp_path / "back.zarr", dtype="float32")
    assert verify(back).ok
    wanted = {n for n, info in store.points.items() if kind == "both" or info.rows in (kind, "both")}
    assert set(back.points) == wanted
    if kind == "both":
        assert {n: i.rows for n, i in back.points.items()} == {n: i.rows for n, i in store.points.items()}
        check_same(back, store, KINDS[kind])
    else:
        for name in wanted:
            np.testing.assert_array_equal(values(back, name, kind), values(store, name, kind))
    assert back.labels == store.labels
    assert back.provenance["config"] == {"layers": [1, 2]}


@pytest.mark.parametrize("profile", ["sharded", "archive"])
def test_a_store_changes_its_profile(store: ActivationStore, tmp_path: Path, profile: Profile) -> None:
    back = import_store(store.path, tmp_path / "b.zarr", profile=profile, dtype="float32")
    assert back.header.profile == profile
    check_same(back, store, ("pooled", "tokens"))
    again = import_store(tmp_path / "b.zarr", tmp_path / "c.zarr")
    assert (
        values(again, "adapter_output", "tokens").tobytes()
        == values(store, "adapter_output", "tokens").tobytes()
    )
    some = import_store(store.path, tmp_path / "d.zarr", points=["llm_final"], samples=5)
    assert (list(some.points), len(some.samples)) == (["llm_final"], 5)
    empty = ActivationStore.create(tmp_path / "e.zarr", StorePlan({"p": PointPlan(2, "pooled")}, ["a"]))
    with pytest.raises(EngineError, match="0 of 1 samples"):
        import_store(empty.path, tmp_path / "f.zarr")


def test_a_store_is_put_behind_a_url_and_fetched(store: ActivationStore, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    try:
        there = import_store(store.path, "memory://exchange/s.zarr", dtype="float32", profile="sharded")
        check_same(there, store, ("pooled", "tokens"))
        assert verify(there).ok
        back = import_store("memory://exchange/s.zarr", tmp_path / "b.zarr", dtype="float32")
        check_same(back, store, ("pooled", "tokens"))
        out = export_store(ActivationStore.open("memory://exchange/s.zarr"), tmp_path / "a.npz", rows="both")
        check_same(import_store(out, tmp_path / "c.zarr", dtype="float32"), store, ("pooled", "tokens"))
    finally:
        fsspec.filesystem("memory").rm("/exchange", recursive=True)


def test_columns_without_a_sidecar(store: ActivationStore, tmp_path: Path) -> None:
    """Arrays alone: each point is its own stream, ids count."""
    out = export_store(store, tmp_path / "a.npz", rows="both")
    (tmp_path / "a.npz.json").unlink()
    back = import_store(out, tmp_path / "b.zarr", dtype="float32")
    assert back.samples == [str(i) for i in range(N)]
    assert back.points["llm_final"].stream == "llm_final"
    np.testing.assert_array_equal(
        back.rows("llm_final").token_ids(0, 9), store.rows("llm_final").token_ids(0, 9)
    )


def peak(action: Any) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressed: bool) -> None:
    """Out and in again with a fraction of its 24 MiB in memory."""
    for module in (importing, exporting):
        monkeypatch.setattr(module, "BLOCK_BYTES", 2**20)
    rows = np.random.default_rng(0).integers(-4, 4, (1536, 4096)).astype(np.float16)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", a=rows, b=rows)
    total = 2 * rows.nbytes
    made: list[ActivationStore] = []
    used = peak(lambda: made.append(import_store(tmp_path / "x.npz", tmp_path / "x.zarr")))
    # Two blocks of 1 MiB, and the writer's chunks of 1 MiB.
    assert used < 0.6 * total
    for name in "ab":
        assert values(made[0], name, "pooled").tobytes() == rows.tobytes()
    used = peak(lambda: export_store(made[0], tmp_path / "y.npz"))
    assert used < 0.4 * total
    with np.load(tmp_path / "y.npz") as npz:
        assert npz["a"].tobytes() == rows.tobytes()


def test_npz_members_of_every_kind(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float64).reshape(12, 5)
    np.savez(tmp_path / "f.npz", c=rows, f=np.asfortranarray(rows), big=rows.astype(">f4"), n=np.float64(3))
    back = import_store(tmp_path / "f.npz", tmp_path / "f.zarr", points=["c", "f", "big"], dtype="float32")
    for name in ("c", "f", "big"):
        np.testing.assert_array_equal(values(back, name, "pooled"), rows)
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        content = archive.read("c.npy")
    for name, data, match in (
        ("short", content[:-40], "ends early"),
        ("magic", b"\x93NUMPZ" + content[6:], "magic"),
        ("version", content[:6] + b"\x07" + content[7:], "npy version"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            archive.writestr("c.npy", data)
        with pytest.raises(EngineError, match=match):
            import_store(tmp_path / f"{name}.npz", tmp_path / f"{name}.zarr")
    damaged = bytearray((tmp_path / "f.npz").read_bytes())
    damaged[200] ^= 1
    (tmp_path / "crc.npz").write_bytes(damaged)
    with pytest.raises(EngineError, match=r"damaged|cannot read"):
        import_store(tmp_path / "crc.npz", tmp_path / "crc.zarr", points=["c"])


def test_an_interrupted_import_of_an_npz_goes_on(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((700, 4)).astype(np.float32)
    np.savez_compressed(tmp_path / "x.npz", x=rows)

    def stop(done: int, total: int) -> None:
        if done == 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_store(tmp_path / "x.npz", tmp_path / "x.zarr", dtype="float32", progress=stop)
    seen: list[int] = []
    back = import_store(
        tmp_path / "x.npz", tmp_path / "x.zarr", dtype="float32", progress=lambda d, t: seen.append(d)
    )
    assert seen[0] > 100
    np.testing.assert_array_equal(values(back, "x", "pooled"), rows)


def test_a_source_with_nothing_in_it_says_what_to_put_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "zero.npz", a=np.zeros((0, 4), np.float16))
    with pytest.raises(
        ValueError, match=r"no arrays to import: save the rows of each hook point .* np.savez"
    ):
        import_store(tmp_path / "none.npz", tmp_path / "s.zarr")
    with pytest.raises(EngineError, match=r"hold no samples \(a\): import a source with"):
        import_store(tmp_path / "zero.npz", tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_bfloat16_from_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    rows = torch.randn(9, 5).to(torch.bfloat16)
    rows[3, 2] = 1e30
    save_file({"a": rows, "e": torch.zeros(9, 3, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    back = import_store(tmp_path / "x.safetensors", tmp_path / "x.zarr", dtype="float32")
    np.testing.assert_array_equal(values(back, "a", "pooled"), rows.float().numpy())
    with pytest.raises(StoreError, match=r"1e\+30 in sample '3' .* fewer than 8 bits.*dtype='float32'"):
        import_store(tmp_path / "x.safetensors", tmp_path / "y.zarr")
    rows[3, 2] = 1e6
    save_file({"a": rows, "e": torch.zeros(9, 3, dtype=torch.bfloat16)}, tmp_path / "z.safetensors")
    scaled = import_store(tmp_path / "z.safetensors", tmp_path / "z.zarr")
    np.testing.assert_allclose(values(scaled, "a", "pooled"), rows.float().numpy(), rtol=2**-11, atol=2**-21)


@pytest.mark.parametrize(
    "sidecar",
    [
        {"labels": {"a": {"kind": "pickle", "values": [1, 2, 3]}}},
        {"labels": {"a": 3}},
        {"labels": [1]},
        {"labels": {"a": {"kind": "number", "values": [1]}}},
        {"labels": {"a": {"kind": "number", "values": ["x", "y", "z"]}}},
        {"labels": {"../a": {"kind": "number", "values": [1, 2, 3]}}},
        {"sample_ids": 7},
        {"sample_ids": ["a", "b"]},
        {"sample_ids": ["a", "a", "b"]},
        {"sample_ids": [1, 2, 3]},
        {"provenance": [1]},
        {"provenance": {"loss": float("nan")}},
        {"streams": {"x": "../../y"}, "arrays": {}},
        {"streams": 3},
    ],
)
def test_what_a_sidecar_may_not_say(tmp_path: Path, sidecar: Any) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2)), **{"x.length": np.array([1, 1, 1])})
    (tmp_path / "x.npz.json").write_text(json.dumps(sidecar))
    with pytest.raises((EngineError, ValueError)) as caught:
        import_store(tmp_path / "x.npz", tmp_path / "no.zarr")
    assert not isinstance(caught.value, json.JSONDecodeError)
    assert not (tmp_path / "no.zarr").exists()


def test_arrays_that_do_not_go_together(tmp_path: Path) -> None:
    rows, three = np.ones((3, 2)), np.array([1, 1, 1])

    def refused(match: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(EngineError, match=match):
            import_store(tmp_path / "x.npz", tmp_path / "no.zarr")

    refused("no a.length to divide", a=rows, **{"a.pooled": rows})
    refused("does not go with its token rows", a=rows, **{"a.length": three, "a.pooled": np.ones((3, 5))})
    refused("does not go with its token rows", a=rows, **{"a.length": three, "a.pooled": np.ones((4, 2))})
    refused("one integer a row", a=rows, **{"a.length": three, "a.ids": np.array([1, 2])})
    refused("one integer a row", a=rows, **{"a.length": three, "a.modality": np.ones(3)})
    refused("expected integers", a=rows, **{"a.length": np.ones(3)})
    refused("does not add up", a=rows, **{"a.length": np.array([-1, 2, 2])})
    np.savez(tmp_path / "x.npz", a=rows, **{"a.length": three, "a.modality": np.array([1, 9, 1])})
    with pytest.raises(ValueError, match="values must be 0 to 3"):
        import_store(tmp_path / "x.npz", tmp_path / "mod.zarr")
    plan = StorePlan({"a": PointPlan(2, "pooled"), "a.length": PointPlan(2, "pooled")}, ["x"])
    store = ActivationStore.create(tmp_path / "named.zarr", plan)
    with store.writer() as writer:
        from modegap.stores import SampleRows

        row = SampleRows(pooled=np.ones(2))
        writer.put(0, {"a": row, "a.length": row})
    with pytest.raises(ValueError, match="means something else in a file"):
        export_store(store, tmp_path / "named.npz")


def test_raw_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("../secret", "/etc/passwd", "a/b", "", "."):
        arrays = {name: {"dtype": "float16", "shape": [4, 8]}}
        (folder / "modegap.json").write_text(json.dumps({"arrays": arrays}))
        with pytest.raises(EngineError, match=r"is not allowed"):
            import_store(folder, tmp_path / "no.zarr", format="raw")
    for shape in ([2**62, 2**62], [-1, 2], [1.5, 2], "ab", [2**40, 2]):
        (folder / "x.bin").write_bytes(bytes(64))
        (folder / "modegap.json").write_text(
            json.dumps({"arrays": {"x": {"dtype": "float16", "shape": shape}}})
        )
        with pytest.raises(EngineError):
            import_store(folder, tmp_path / "no.zarr")


def test_the_commands(store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, back = str(tmp_path / "a.safetensors"), str(tmp_path / "back.zarr")
    assert main(["export", str(store.path), out, "--rows", "both"]) == 0
    assert main(["import", out, back, "--dtype", "float32", "--ids", "numbers", "--profile", "sharded"]) == 0
    opened = ActivationStore.open(back)
    assert opened.samples[:2] == ["0", "1"]
    np.testing.assert_array_equal(values(opened, "llm_final", "tokens"), values(store, "llm_final", "tokens"))
    assert main(["import", str(store.path), str(tmp_path / "c.zarr"), "--profile", "archive", "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.rindex("{\n") :])["samples"] == N
    assert (
        main(["export", str(store.path), str(tmp_path / "d"), "--format", "datasets", "--rows", "both"]) == 1
    )
    assert "either rows of a point" in capsys.readouterr().err
