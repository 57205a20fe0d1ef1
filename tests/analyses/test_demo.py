"""The main job end to end on few samples, and studies read back from its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modegap.analyses.demo import DemoConfig, DemoResult, demo
from modegap.analyses.demo.job import lab_experiment
from modegap.analyses.experiment import run
from modegap.analyses.study import load_study, study_report
from modegap.stores import ActivationStore, StoreError, verify

CONFIG = {"samples": 120, "ablate_samples": 24, "batch_size": 24}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return demo(DemoConfig(out=str(tmp_path_factory.mktemp("demo")), **CONFIG))


def test_everything_is_there(done: DemoResult) -> None:
    assert done.report.is_file()
    page = done.report.read_text()
    assert [study.name for study in done.studies] == ["plain", "aligned"]
    for study in done.studies:
        assert f"modes-{study.name}" in page
        assert [modes.point for modes in study.modes] == ["adapter_output", "llm_final", "llm_hidden_3"]
        assert study.probes is not None
        assert study.ablation is not None
        assert study.ablation.n == CONFIG["ablate_samples"]
    figures = {path.name for path in (done.report.parent / "figures").iterdir()}
    assert {"mode-spectrum.svg", "mode-spectrum.png", "mode-spectrum.csv", "probe-curves.svg"} <= figures
    json.dumps(done.to_json(), allow_nan=False)
    assert len(done.table().rows) == 2


def test_numbers_come_from_the_stores(done: DemoResult) -> None:
    out = done.report.parent.parent
    for study in done.studies:
        store = ActivationStore.open(out / study.name / "modal.zarr")
        assert verify(store).ok
        modes = study.modes[0]
        rows = store.rows("adapter_output")
        x = rows.read(0, rows.n_valid_rows).astype(np.float64)
        expected = np.linalg.eigvalsh(np.cov(x.T))[::-1]
        np.testing.assert_allclose(modes.eigenvalues[:20], expected[:20], rtol=1e-5)
        assert modes.certificate.store_hashes["modal"] == store.content_hash()
        captioned = study.facts["caption_accuracy"]
        assert captioned >= 0.8


def test_a_second_run_reuses_what_is_there(done: DemoResult) -> None:
    out = done.report.parent.parent
    chunks = {path: path.stat().st_mtime_ns for path in out.rglob("c/**/*") if path.is_file()}
    again = demo(DemoConfig(out=str(out), **CONFIG))
    assert chunks == {path: path.stat().st_mtime_ns for path in out.rglob("c/**/*") if path.is_file()}
    for before, after in zip(done.studies, again.studies, strict=True):
        np.testing.assert_array_equal(before.modes[0].rho, after.modes[0].rho)


def test_other_options_in_the_same_folder_are_refused(done: DemoResult) -> None:
    out = done.report.parent.parent
    with pytest.raises(StoreError, match="another plan"):
        demo(DemoConfig(out=str(out), samples=60, ablate_samples=2, batch_size=24))
    with pytest.raises(ValueError, match="samples"):
        DemoConfig(samples=1)


def test_a_study_is_read_back(done: DemoResult, tmp_path: Path) -> None:
    study = load_study(done.report.parent.parent / "plain")
    assert study.provenance["modal.zarr"]["model"] == "lab:plain"
    assert [section.anchor for section in study_report([study]).sections] == ["modes", "probes", "ablation"]
    both = study_report([study, replace(study, name="other one")]).sections
    assert [section.anchor for section in both] == [
        *("overview", "encoders", "modes", "probes", "ablation"),
        *("model-plain", "model-other-one"),
    ]
    assert [part.anchor for part in both[-1].parts] == [
        f"model-other-one-{topic}" for topic in ("modes", "probes", "ablation")
    ]
    with pytest.raises(ValueError, match="different names"):
        study_report([study, study])
    with pytest.raises(ValueError, match="no results"):
        load_study(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        load_study(tmp_path / "none")


def test_the_shipped_experiment_is_the_demo(done: DemoResult) -> None:
    from modegap._facade import load, unsifted_dataset

    out = done.report.parent.parent
    before = {
        file.relative_to(out): file.read_bytes() for file in (out / "report").rglob("*") if file.is_file()
    }
    assert len(before) > 50
    again = run(lab_experiment(DemoConfig(out=str(out), **CONFIG)), load=load, open_data=unsifted_dataset)
    assert {cell.outcome for cell in again.cells} == {"skipped"}
    after = {
        file.relative_to(out): file.read_bytes() for file in (out / "report").rglob("*") if file.is_file()
    }
    assert before == after
