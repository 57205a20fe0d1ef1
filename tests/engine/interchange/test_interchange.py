"""Import and export: what goes out comes back, other tools read it, and what is no rows is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from modegap.cli import main
from modegap.engine.errors import EngineError
from modegap.engine.interchange import export_store, import_store
from modegap.stores import ActivationStore, LabelColumn, PointPlan, SampleRows, StorePlan, verify

N = 23
LENGTHS = np.resize([3, 0, 5, 1], N)
OUTS = {"hdf5": "out.h5", "npy": "out", "npz": "out.npz", "safetensors": "out.safetensors", "raw": "out"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    plan = StorePlan(
        {
            "adapter_output": PointPlan(6, "both", LENGTHS, stream="s"),
            "llm_final": PointPlan(4, "both", LENGTHS, stream="s", dtype="float32"),
            "big": PointPlan(3, "pooled"),
        },
        [f"id {i} é" for i in range(N)],
        labels={
            "class": LabelColumn("category", tuple("ab"[i % 2] for i in range(N))),
            "score": LabelColumn("number", tuple(None if i == 3 else i / 2 for i in range(N))),
        },
        provenance={"model": "tiny", "config": {"layers": [1, 2]}},
        chunk_bytes=64,
    )
    made = ActivationStore.create(tmp_path_factory.mktemp("out") / "s.zarr", plan)
    rng = np.random.default_rng(0)
    with made.writer() as writer:
        for i in range(N):
            rows = {}
            for name, point in plan.points.items():
                tokens, pooled = (
                    rng.standard_normal((LENGTHS[i], point.width)),
                    rng.standard_normal(point.width),
                )
                scale = 1e6 if name == "big" and i == 7 else 1
                rows[name] = SampleRows(tokens if point.rows == "both" else None, pooled * scale)
            writer.put(i, rows)
    return made


def values(store: ActivationStore, point: str, kind: str) -> np.ndarray:
    rows = store.rows(point, kind)  # type: ignore[arg-type]
    return rows.read(0, rows.shape[0])


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
@pytest.mark.parametrize("form", OUTS)
def test_there_and_back(store: ActivationStore, tmp_path: Path, form: str, kind: str) -> None:
    if form == "hdf5":
        pytest.importorskip("h5py")
    seen: list[tuple[int, int]] = []
    out = export_store(
        store,
        tmp_path / OUTS[form],
        format=form,
        rows=kind,
        progress=lambda *at: seen.append(at),  # type: ignore[arg-type]
    )
    assert seen[-1][0] == seen[-1][1] > 0
    back = import_store(out, tmp_path / "back.zarr", dtype="float32")
    assert verify(back).ok
    assert back.samples == store.samples
    assert back.labels == store.labels
    assert back.provenance["model"] == "tiny"
    assert back.provenance["config"] == {"layers": [1, 2]}
    assert back.provenance["imported"] == {"file": OUTS[form], "format": form}
    points = [name for name, info in store.points.items() if info.rows in (kind, "both")]
    assert sorted(back.points) == sorted(points)
    for point in points:
        np.testing.assert_array_equal(values(back, point, kind), values(store, point, kind))
        if kind == "tokens":
            np.testing.assert_array_equal(back.rows(point).lengths(), LENGTHS)


def test_fp16_keeps_every_bit(store: ActivationStore, tmp_path: Path) -> None:
    out = export_store(store, tmp_path / "out.safetensors", points=["adapter_output"])
    back = import_store(out, tmp_path / "back.zarr", profile="sharded")
    assert back.points["adapter_output"].dtype == "float16"
    assert (
        values(back, "adapter_output", "pooled").tobytes()
        == values(store, "adapter_output", "pooled").tobytes()
    )


def test_others_read_what_is_exported(store: ActivationStore, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    wanted = {name: values(store, name, "pooled") for name in store.points}
    assert wanted["big"].dtype == np.float32
    tensors = load_file(export_store(store, tmp_path / "a.safetensors"))
    with np.load(export_store(store, tmp_path / "a.npz")) as npz:
        arrays = {name: npz[name] for name in npz.files}
    export_store(store, tmp_path / "npy", format="npy")
    export_store(store, tmp_path / "raw", format="raw")
    described = json.loads((tmp_path / "raw/modegap.json").read_text())["arrays"]
    for name, rows in wanted.items():
        np.testing.assert_array_equal(tensors[name], rows)
        np.testing.assert_array_equal(arrays[name], rows)
        np.testing.assert_array_equal(np.load(tmp_path / f"npy/{name}.npy"), rows)
        flat = np.fromfile(tmp_path / f"raw/{name}.bin", described[name]["dtype"])
        np.testing.assert_array_equal(flat.reshape(described[name]["shape"]), rows)


def test_the_published_layout(store: ActivationStore, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    out = export_store(store, tmp_path / "a.h5")
    with h5py.File(out) as file:
        assert set(file) == {"adapter_output", "llm_final", "big", "sample_ids"}
        assert all(file[name].dtype == np.float32 for name in file if name != "sample_ids")
        assert file["big"].chunks == (N, 3)
        assert file.attrs["model"] == "tiny"
        assert json.loads(file.attrs["config"]) == {"layers": [1, 2]}
    with h5py.File(tmp_path / "paper.hdf5", "w") as file:
        file.create_dataset("projector", (300, 5), "float32", chunks=(256, 5))
        file["projector"][:9] = np.arange(45).reshape(9, 5)
        file.attrs["model"] = "other"
        file.attrs["hook_points"] = json.dumps(["projector"])
        file.attrs["seed"] = np.int64(3)
    back = import_store(tmp_path / "paper.hdf5", tmp_path / "paper.zarr", samples=9)
    assert back.samples == [str(i) for i in range(9)]
    assert (back.provenance["hook_points"], back.provenance["seed"]) == (["projector"], 3)
    np.testing.assert_array_equal(values(back, "projector", "pooled"), np.arange(45).reshape(9, 5))


def test_a_raw_file(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(6, 4)
    rows.tofile(tmp_path / "x.bin")
    back = import_store(tmp_path / "x.bin", tmp_path / "x.zarr", width=4, raw_dtype="float32")
    np.testing.assert_array_equal(values(back, "x", "pooled"), rows)
    with pytest.raises(EngineError, match="needs its width"):
        import_store(tmp_path / "x.bin", tmp_path / "y.zarr")
    with pytest.raises(EngineError, match="not whole rows of 5 float16"):
        import_store(tmp_path / "x.bin", tmp_path / "y.zarr", width=5)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.bin").write_bytes(bytes(64))
    for entry, match in (
        ({"dtype": "object", "shape": [4, 2]}, "has dtype 'object'"),
        ({"dtype": "float32", "shape": [99, 2]}, "cannot read"),
        ({"dtype": "float32"}, "shape"),
    ):
        (folder / "modegap.json").write_text(json.dumps({"arrays": {"x": entry}}))
        with pytest.raises(EngineError, match=match):
            import_store(folder, tmp_path / "y.zarr")


def test_an_interrupted_import_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((500, 4)))

    def stop(done: int, total: int) -> None:
        if done == 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_store(tmp_path / "x.npy", tmp_path / "x.zarr", progress=stop)
    assert 0 < ActivationStore.open(tmp_path / "x.zarr").n_complete < 500
    seen: list[int] = []
    assert (
        import_store(tmp_path / "x.npy", tmp_path / "x.zarr", progress=lambda d, t: seen.append(d)).n_complete
        == 500
    )
    assert seen[0] > 100


def test_what_is_refused(store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, name: str, **arrays: np.ndarray) -> None:
        np.savez(tmp_path / name, **arrays)
        with pytest.raises((EngineError, ValueError), match=match):
            import_store(tmp_path / name, tmp_path / "no.zarr")
        assert not (tmp_path / "no.zarr").exists()

    refused("different numbers of samples", "a.npz", a=np.ones((3, 2)), b=np.ones((4, 2)))
    refused(r"expected floats \[rows, width\]", "b.npz", a=np.ones((3, 2), int))
    refused(
        "does not add up to the 3 rows of 'a'", "c.npz", a=np.ones((3, 2)), **{"a.length": np.array([1, 1])}
    )
    refused("no arrays to import", "d.npz")
    refused("point name '../a' is not allowed", "e.npz", **{"../a": np.ones((3, 2))})
    refused("allow_pickle", "f.npz", a=np.array([{}], dtype=object))
    for name in ("junk.npz", "junk.npy", "junk.safetensors", "junk.h5"):
        (tmp_path / name).write_bytes(b"not this")
        with pytest.raises(EngineError, match=r"cannot read .*: check that it is whole"):
            import_store(tmp_path / name, tmp_path / "no.zarr")
    with pytest.raises(EngineError, match="no file at"):
        import_store(tmp_path / "none.npz", tmp_path / "no.zarr")
    with pytest.raises(ValueError, match="--format"):
        import_store(tmp_path / "what.ever", tmp_path / "no.zarr")
    np.save(tmp_path / "x.npy", np.ones((4, 2)))
    for bad in (0, 5):
        with pytest.raises(ValueError, match="samples must be 1 to 4"):
            import_store(tmp_path / "x.npy", tmp_path / "no.zarr", samples=bad)
    (tmp_path / "x.npy.json").write_text("[")
    with pytest.raises(EngineError, match="is not JSON"):
        import_store(tmp_path / "x.npy", tmp_path / "no.zarr")
    (tmp_path / "there.npz").write_bytes(b"")
    with pytest.raises(EngineError, match="exists already"):
        export_store(store, tmp_path / "there.npz")
    with pytest.raises(ValueError, match="leave the suffix off"):
        export_store(store, tmp_path / "one.npy")
    empty = ActivationStore.create(tmp_path / "e.zarr", StorePlan({"p": PointPlan(2, "pooled")}, ["a"]))
    with pytest.raises(EngineError, match="0 of 1 samples"):
        export_store(empty, tmp_path / "empty.npz")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EngineError, match="pip install"):
        export_store(store, tmp_path / "x.h5")
    assert not list(tmp_path.glob(".*partial"))


def test_a_failed_export_leaves_nothing(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for form, name in OUTS.items():
        with pytest.raises(KeyboardInterrupt):
            export_store(store, tmp_path / name, format=form, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_commands(store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.npz")
    assert main(["export", str(store.path), out, "--points", "adapter_output", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == N
    assert main(["import", out, str(tmp_path / "back.zarr"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"] == ["adapter_output"]
    assert main(["import", out, str(tmp_path / "back.zarr")]) == 0
    assert f"{N} samples" in capsys.readouterr().out
    assert main(["export", str(store.path), out]) == 1
    error = capsys.readouterr().err
    assert error.startswith("modegap: error: ")
    assert "exists already" in error
