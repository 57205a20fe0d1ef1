"""`extract_moments`: statistics without rows are those of the rows a store would hold."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.analyses.align import align
from modegap.engine.capture import ExtractConfig, extract, extract_moments
from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.errors import EngineError
from modegap.engine.moments import ClassMoments, Moments, MomentsStore
from modegap.engine.reduce import reduce

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))
POINTS = ("adapter_output", "llm_hidden_1", "llm_final")


def config(path: Path, **more) -> ExtractConfig:
    given = {"points": POINTS, "batch_size": 3, "rows": "stats-only", **more}
    return ExtractConfig("given", "given", str(path), **given)


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize("family", ["llava", "audio"])
def test_the_statistics_are_those_of_the_stored_rows(family: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded, data = make(), ListDataset(samples(14))
    store = extract(config(tmp_path / "rows", rows="both"), model=loaded, data=data)
    made = extract_moments(config(tmp_path / "stats", by="kind"), model=loaded, data=data)
    assert "rows" not in " ".join(files(tmp_path / "stats"))
    assert made.samples == store.samples
    for point in POINTS:
        for kind in ("tokens", "pooled"):
            theirs = reduce(store, point, Moments(), kind=kind)
            ours = made.moments(point, kind)
            assert ours.count == theirs.count == made.count(point, kind)
            scale = theirs.std[:, None] * theirs.std
            assert float(((ours.covariance - theirs.covariance).abs() / scale).max()) < 3e-6
            torch.testing.assert_close(ours.mean, theirs.mean, rtol=1e-6, atol=1e-7)
            assert torch.equal(ours.absmax, theirs.absmax)
            assert ours.audit_error is not None
            assert ours.audit_error < 3e-6
            codes = store.labels["kind"].codes()
            by, names = made.class_moments(point, kind)
            expected = reduce(store, point, ClassMoments(codes, 2), kind=kind)
            assert names == ["cat", "dog"]
            assert torch.equal(by.class_count, expected.class_count)
            torch.testing.assert_close(by.class_mean, expected.class_mean, rtol=1e-6, atol=1e-7)


def test_align_and_cov_read_statistics_like_a_store(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(20))
    text = tiny.text()
    points = ("adapter_output", "llm_hidden_1")
    modal = extract(config(tmp_path / "m", rows="both", points=points), model=loaded, data=data)
    law = extract(
        config(tmp_path / "t", rows="both", points=("text_embedding", "llm_hidden_1")), model=text, data=data
    )
    modal_stats = extract_moments(config(tmp_path / "ms", points=points), model=loaded, data=data)
    text_stats = extract_moments(
        config(tmp_path / "ts", points=("text_embedding", "llm_hidden_1")), model=text, data=data
    )
    for rows in ("tokens", "pooled"):
        with pytest.warns(UserWarning, match="rho is unreliable"):
            expected = align(modal, law, rows=rows, interval=None)
        with pytest.warns(UserWarning, match="no interval on rho: statistics without rows"):
            found = align(tmp_path / "ms", tmp_path / "ts", rows=rows)
        assert found.n == expected.n
        assert found.n_samples == 20
        np.testing.assert_allclose(found.eigenvalues, expected.eigenvalues, rtol=1e-4, atol=1e-6)
        top = expected.considered[:5]
        np.testing.assert_allclose(found.rho[top], expected.rho[top], rtol=1e-3)
        assert found.certificate.store_hashes["modal"] == modal_stats.content_hash()
    assert text_stats.points["text_embedding"].width == 48
    with pytest.raises(ValueError, match="mode precise, exact is asked for"):
        align(modal_stats, text_stats, precision="exact")
    with pytest.warns(UserWarning, match="no interval"):
        align(modal_stats, law)


def test_overflow_is_scaled_as_in_the_store(tmp_path: Path) -> None:
    loaded = tiny.text()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(1e6)
    data = ListDataset(tiny.text_samples(9))
    points = ("llm_hidden_0", "llm_final")
    store = extract(config(tmp_path / "a", rows="both", points=points), model=loaded, data=data)
    made = extract_moments(config(tmp_path / "b", points=points), model=loaded, data=data)
    theirs, ours = reduce(store, "llm_hidden_0", Moments()), made.moments("llm_hidden_0")
    assert ours.overflow_count == theirs.overflow_count > 0
    scale = theirs.std[:, None] * theirs.std
    # the scale is that of a chunk there and of a batch here: fp16 subnormals round differently
    assert float(((ours.covariance - theirs.covariance).abs() / scale).max()) < 1e-3


def test_a_value_that_would_cost_others_their_digits_is_named(tmp_path: Path) -> None:
    loaded, data = tiny.text(), ListDataset(tiny.text_samples(9))
    ids = [loaded.processor(data[index].text)["input_ids"] for index in range(9)]
    token = ids[4][-1]
    holders = "|".join(data[index].id for index in range(9) if token in ids[index])
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[token] *= 1e12
    points = ("llm_hidden_0",)
    with pytest.raises(
        EngineError, match=rf"hidden_0: the value \S+ in sample '({holders})' .* 8 bits; .*float32"
    ):
        extract_moments(config(tmp_path / "a", points=points), model=loaded, data=data)
    wide = config(tmp_path / "b", points=points, store_dtype="float32")
    assert float(extract_moments(wide, model=loaded, data=data).moments("llm_hidden_0").absmax.max()) > 1e9


def test_a_killed_run_goes_on_and_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = tiny.audio(), ListDataset(tiny.audio_samples(30))
    whole = extract_moments(config(tmp_path / "a"), model=loaded, data=data)
    made = config(tmp_path / "b")
    seen: list[int] = []

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "capture":
            seen.append(done)
            if done >= 18:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_moments(made, model=loaded, data=data, progress=stop, checkpoint_seconds=0.0)
    assert "checkpoint.safetensors" in files(tmp_path / "b")
    with pytest.raises(EngineError, match="another plan"):
        extract_moments(replace(made, pool="modality"), model=loaded, data=data)
    ticks: list[int] = []
    again = extract_moments(
        made, model=loaded, data=data, progress=lambda p, d, t: ticks.append(d) if p == "capture" else None
    )
    assert ticks[0] >= 12
    assert files(tmp_path / "b") == files(tmp_path / "a")
    for point in POINTS:
        for kind in ("tokens", "pooled"):
            assert torch.equal(again.moments(point, kind).covariance, whole.moments(point, kind).covariance)
            assert torch.equal(again.moments(point, kind).mean, whole.moments(point, kind).mean)
    assert extract_moments(made, model=loaded, data=data).content_hash() == again.content_hash()


def test_refusals(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(4))
    with pytest.raises(ValueError, match="use extract_moments"):
        extract(config(tmp_path / "a"), model=loaded, data=data)
    with pytest.raises(ValueError, match="which are stored; use extract"):
        extract_moments(config(tmp_path / "a", rows="pooled"), model=loaded, data=data)
    with pytest.raises(ValueError, match="by belongs to rows='stats-only'"):
        config(tmp_path / "a", rows="both", by="kind")
    with pytest.raises(EngineError, match="no label 'mood' in the data set"):
        extract_moments(config(tmp_path / "a", by="mood"), model=loaded, data=data)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("x")
    with pytest.raises(EngineError, match="something else than statistics"):
        extract_moments(config(tmp_path / "c"), model=loaded, data=data)
    made = extract_moments(config(tmp_path / "d"), model=loaded, data=data)
    with pytest.raises(EngineError, match="exists; choose another"):
        extract_moments(config(tmp_path / "d", resume=False), model=loaded, data=data)
    with pytest.raises(EngineError, match="another plan"):
        extract_moments(config(tmp_path / "d", prompt="cat"), model=loaded, data=data)
    with pytest.raises(EngineError, match=r"llm_hidden_2"):
        made.moments("llm_hidden_2")
    with pytest.raises(EngineError, match="no class means"):
        made.class_moments("llm_final")
    file = tmp_path / "d" / "llm_final.tokens.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.raises(EngineError, match="does not match its hash"):
        MomentsStore.open(tmp_path / "d").moments("llm_final")
    bad = ListDataset([Sample(f"s{i}", "a cat" if i != 2 else "a dog") for i in range(4)])
    text = tiny.text()
    with torch.no_grad():
        text.model.get_input_embeddings().weight[text.processor.convert_tokens_to_ids("dog")] = torch.nan
    with pytest.raises(EngineError, match="sample 's2' has NaN"):
        extract_moments(config(tmp_path / "e", points=("llm_final",), batch_size=1), model=text, data=bad)
