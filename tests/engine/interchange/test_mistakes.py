"""What users do: folders renamed, files that are none, two exports at once, a disk that is full."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_material import check_same, full_store

from modegap.cli import main
from modegap.engine.errors import EngineError
from modegap.engine.interchange import export_store, exporting, import_store
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return full_store(tmp_path_factory.mktemp("full") / "s.zarr")


@pytest.mark.parametrize("form", ["npy", "raw"])
def test_a_folder_may_be_renamed(store: ActivationStore, tmp_path: Path, form: str) -> None:
    export_store(store, tmp_path / "out", format=form, rows="both").rename(tmp_path / "out.v1")
    check_same(
        store, import_store(tmp_path / "out.v1", tmp_path / "x.zarr", dtype="float32"), ("pooled", "tokens")
    )


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.npy").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.npy")
    for name, said in (("empty.npy", "cannot read"), ("pipe.npy", "is a pipe or a device")):
        assert main(["import", str(tmp_path / name), str(tmp_path / "x.zarr")]) == 1
        shown = capsys.readouterr().err
        assert said in shown
        assert "Traceback" not in shown
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("name", ["x.npz", "x"])
def test_two_exports_to_one_place(store: ActivationStore, tmp_path: Path, name: str) -> None:
    form = "npz" if name == "x.npz" else "raw"
    out = tmp_path / name
    met: list[str] = []

    def again(done: int, total: int) -> None:
        if not met:
            with pytest.raises(EngineError) as caught:
                export_store(store, out, format=form)
            met.append(str(caught.value))

    export_store(store, out, format=form, rows="both", progress=again)
    assert met[0].startswith(f"another process is exporting to {out}")
    check_same(store, import_store(out, tmp_path / "y.zarr", dtype="float32"), ("pooled", "tokens"))
    assert not list(tmp_path.glob(".*"))


def test_an_export_that_does_not_fit(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exporting.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match=r"x\.npz needs \d+ bytes, 10 are free there: free some space"):
            export_store(store, tmp_path / "x.npz")

    def full(*_: object) -> None:
        raise OSError(28, "a long story\nof a library")

    monkeypatch.setattr(exporting, "write_arrays", full)
    with pytest.raises(
        EngineError, match=r"cannot write .*x\.npz \(No space left on device\): nothing of it"
    ):
        export_store(store, tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_exports_go_to_files(store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"s3://bucket/x\.npz is a URL, and exports go to files"):
        export_store(store, "s3://bucket/x.npz")
    assert not list(tmp_path.iterdir())


def test_a_point_with_the_name_of_the_ids(tmp_path: Path) -> None:
    made = ActivationStore.create(
        tmp_path / "s.zarr", StorePlan({"sample_ids": PointPlan(2, "pooled")}, ["a"])
    )
    with made.writer() as writer:
        writer.put(0, {"sample_ids": SampleRows(pooled=np.ones(2))})
    made.refresh()
    with pytest.raises(ValueError, match="point 'sample_ids' has a name that means something else"):
        export_store(made, tmp_path / "x.h5")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    import_store("~/x.npy", "~/x.zarr")
    store = ActivationStore.open("~/x.zarr")
    assert store.path == tmp_path / "x.zarr"
    assert export_store(store, "~/x.npz") == tmp_path / "x.npz"
    assert main(["verify", "~/x.zarr"]) == 0
    assert main(["verify", "~nobody-of-this-name/x.zarr"]) == 1


@pytest.mark.parametrize("options", [{"width": 4}, {"raw_dtype": "float32"}])
def test_what_describes_a_raw_file_is_refused_for_others(tmp_path: Path, options: dict[str, Any]) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float16))
    with pytest.raises(ValueError, match=r"describe a single raw file, and .*x\.npy is npy: leave them off"):
        import_store(tmp_path / "x.npy", tmp_path / "x.zarr", **options)
    assert not (tmp_path / "x.zarr").exists()
