"""`extract` under its options: pooling, workers, bad media, batch sizes; memory over many batches."""

from __future__ import annotations

import gc
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import ExtractConfig, extract, extract_moments, read_skipped, record
from modegap.engine.capture.collect import Collector
from modegap.engine.capture.rows import split_rows
from modegap.engine.capture.schedule import Batching, schedule
from modegap.engine.datasets import ListDataset, MediaError, Sample, dataset
from modegap.engine.errors import EngineError
from modegap.engine.plan import choose_batching
from modegap.stores import ActivationStore, StoreError, verify

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def config(path: Path, points: tuple[str, ...] = ("llm_hidden_1", "adapter_output"), **more) -> ExtractConfig:
    return ExtractConfig("given", "given", str(path), points, **{"batch_size": 3, **more})


def folder(path: Path, count: int, broken: tuple[int, ...] = ()) -> Path:
    """A data set of PNG files with a table; the files of `broken` are cut short."""
    path.mkdir()
    lines = ["file,text,kind"]
    for i, sample in enumerate(tiny.image_samples(count)):
        file = path / f"{i}.png"
        sample.media.save(file)
        if i in broken:
            file.write_bytes(file.read_bytes()[:40])
        lines.append(f"{i}.png,{sample.text},{'cat' if i % 2 else 'dog'}")
    (path / "metadata.csv").write_text("\n".join(lines))
    return path


def same_rows(ours: ActivationStore, theirs: ActivationStore) -> None:
    for point in theirs.points:
        for kind in ("tokens", "pooled"):
            found, expected = ours.rows(point, kind), theirs.rows(point, kind)
            np.testing.assert_array_equal(found.read(0, found.shape[0]), expected.read(0, expected.shape[0]))


@pytest.mark.parametrize("family", ["llava", "audio"])
def test_modality_pooling_is_the_mean_of_the_media_rows(family: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded, data = make(), ListDataset(samples(8))
    whole = extract(config(tmp_path / "all", target=True), model=loaded, data=data)
    media = extract(config(tmp_path / "media", target=True, pool="modality"), model=loaded, data=data)
    assert (whole.provenance["pool"], media.provenance["pool"]) == ("all", "modality")
    for index in range(8):
        rows = media.rows("llm_hidden_1")
        start, stop = rows.sample_range(index)
        kept = rows.modality(start, stop) > 1
        assert 0 < kept.sum() < len(kept)
        expected = rows.sample(index)[kept].astype(np.float64).mean(axis=0)
        found = media.rows("llm_hidden_1", "pooled").sample(index)[0]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
        for store in (whole, media):  # every row of the adapter stands for media
            adapter = store.rows("adapter_output").sample(index).astype(np.float64).mean(axis=0)
            pooled = store.rows("adapter_output", "pooled").sample(index)[0]
            np.testing.assert_allclose(pooled, adapter, rtol=2e-3, atol=1e-3)
    difference = np.abs(
        whole.rows("llm_hidden_1", "pooled").sample(0) - media.rows("llm_hidden_1", "pooled").sample(0)
    )
    assert difference.max() > 0.01
    with record(loaded, ["llm_hidden_1"], tmp_path / "r", "pooled", pool="modality") as rec:
        rec(loaded.collate([data[5]], target=True))
    np.testing.assert_allclose(
        rec.store.rows("llm_hidden_1", "pooled").sample(0),
        media.rows("llm_hidden_1", "pooled").sample(5),
        rtol=2e-3,
        atol=1e-3,
    )


def test_texts_have_no_media_rows(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(3))
    points = ("llm_hidden_1",)
    with pytest.raises(EngineError, match="no media rows to pool over"):
        extract(config(tmp_path / "a", points, as_text=True, pool="modality"), model=loaded, data=data)
    with (
        pytest.raises(EngineError, match="sample 'x' has no media rows to pool at text_embedding"),
        record(loaded, ["text_embedding"], tmp_path / "r", "pooled", pool="modality") as rec,
    ):
        rec([Sample("x", "cat", data[0].media)])


def test_workers_change_no_bit(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), dataset(folder(tmp_path / "data", 9))
    alone = extract(config(tmp_path / "a"), model=loaded, data=data)
    helped = extract(config(tmp_path / "b", workers=2), model=loaded, data=data)
    assert helped.content_hash() == alone.content_hash()


@pytest.mark.parametrize("rows", ["both", "stats-only"])
def test_bad_media_stop_the_run_or_are_left_out_and_listed(rows: str, tmp_path: Path) -> None:
    loaded, data = tiny.llava(), dataset(folder(tmp_path / "data", 9, broken=(0, 5)))
    run = extract if rows == "both" else extract_moments
    with pytest.raises(MediaError, match=r"cannot decode .*0\.png of sample '0\.png'"):
        run(config(tmp_path / "s", rows=rows), model=loaded, data=data)
    assert not (tmp_path / "s").exists()
    made = config(tmp_path / "s", rows=rows, skip_bad=True)
    store = run(made, model=loaded, data=data)
    kept = [f"{i}.png" for i in range(9) if i not in (0, 5)]
    assert list(store.samples) == kept
    assert sorted(store.provenance["skipped"]) == ["0.png", "5.png"]
    listed = read_skipped(tmp_path / "s")
    assert [entry["sample"] for entry in listed] == ["0.png", "5.png"]
    assert all(entry["reason"] for entry in listed)
    again = run(made, model=loaded, data=data)
    assert again.content_hash() == store.content_hash()
    assert len(read_skipped(tmp_path / "s")) == 2
    if rows == "both":
        good = dataset([data[i] for i in range(9) if i not in (0, 5)])
        same_rows(store, extract(config(tmp_path / "g"), model=loaded, data=good))
        assert store.labels["kind"].values == ("cat", "dog", "cat", "dog", "dog", "cat", "dog")


def test_only_bad_media(tmp_path: Path) -> None:
    data = dataset(folder(tmp_path / "data", 2, broken=(0, 1)))
    with pytest.raises(EngineError, match="none of the 2 samples of data can be decoded"):
        extract(config(tmp_path / "s", skip_bad=True), model=tiny.llava(), data=data)


def test_a_broken_sample_in_the_middle_stops_what_is_not_decoded_before(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), dataset(folder(tmp_path / "data", 12, broken=(10,)))
    with pytest.raises(MediaError, match=r"sample '10\.png'"):
        extract(config(tmp_path / "s"), model=loaded, data=data)
    data_again = dataset(folder(tmp_path / "mended", 12))
    object.__setattr__(data_again, "name", data.name)
    store = extract(config(tmp_path / "s"), model=loaded, data=data_again)
    assert store.n_complete == 12
    assert verify(store).ok


def test_batches_chosen_from_memory(tmp_path: Path) -> None:
    loaded = tiny.llava()
    points = loaded.select(["llm_final"])
    roomy = choose_batching(loaded, points, 20, free=10**12)
    tight = choose_batching(loaded, points, 20, free=4 * 10**6)
    assert roomy.tokens == 16_384
    assert 20 <= tight.tokens < roomy.tokens
    assert choose_batching(loaded, points, 20, free=0).tokens == 20
    assert choose_batching(loaded, points, 5000).tokens == 5000
    data = ListDataset(tiny.image_samples(7))
    store = extract(config(tmp_path / "a", batch_size=None), model=loaded, data=data)
    assert store.provenance["batching"] == {"samples": 256, "tokens": 2048}
    alone = extract(config(tmp_path / "b", batch_size=1), model=loaded, data=data)
    for index in range(7):
        np.testing.assert_allclose(
            store.rows("llm_hidden_1").sample(index).astype(np.float32),
            alone.rows("llm_hidden_1").sample(index).astype(np.float32),
            rtol=2e-3,
            atol=1e-3,
        )


def test_a_resumed_store_keeps_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(6))
    made = config(tmp_path / "a", batch_size=None)
    first = extract(made, model=loaded, data=data)
    monkeypatch.setattr("modegap.engine.plan.batching.HOST_TOKENS", 40)
    assert choose_batching(loaded, [], 20).tokens == 40
    assert extract(made, model=loaded, data=data).content_hash() == first.content_hash()
    with pytest.raises(StoreError, match="another plan"):
        extract(replace(made, batch_size=2), model=loaded, data=data)


def test_token_budgets_bound_every_batch() -> None:
    rng = np.random.default_rng(1)
    for budget in (60, 200, 1000):
        lengths = rng.integers(1, 90, size=150)
        windows = list(schedule(lengths, 150, Batching(16, budget)))
        assert sorted(i for w in windows for batch in w.batches for i in batch) == list(range(150))
        assert [w.start for w in windows[1:]] == [w.stop for w in windows[:-1]]
        for window in windows:
            assert window.stop - window.start <= 64
            for batch in window.batches:
                assert len(batch) == 1 or len(batch) * lengths[list(batch)].max() <= budget
                assert len(batch) <= 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_narrowed_on_the_device_or_on_the_host_have_the_same_bits(dtype: torch.dtype) -> None:
    from modegap.engine.capture import Block

    torch.manual_seed(0)
    x = (torch.randn(3, 5, 8) * 10.0 ** torch.randint(-7, 4, (3, 5, 8))).to(dtype)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 4 + [True]])
    block = Block(x, mask, None, mask)
    ids = ["a", "b", "c"]
    narrow = Collector("both", half=True)({"p": block}, ids)["p"]
    late = Collector("both", half=True, overflowed={"p"})({"p": block}, ids)["p"]
    assert (narrow.tokens.dtype, late.tokens.dtype) == (torch.float16, dtype)
    for one, other in zip(
        split_rows("p", narrow, ids, narrow.wide), split_rows("p", late, ids, late.wide), strict=True
    ):
        np.testing.assert_array_equal(one.tokens.view(np.uint16), other.tokens.view(np.uint16))
    x[1, 0, 0] = 1e5
    big = Collector("both", half=True)({"p": block}, ids)["p"]
    rows = split_rows("p", big, ids, big.wide)
    assert rows[1].tokens.dtype == np.float32
    np.testing.assert_array_equal(rows[0].tokens, x[0].float().numpy())
    x[1, 3:] = torch.nan  # padding may hold anything
    clean = Collector("both", half=True)({"p": block}, ids)["p"]
    split_rows("p", clean, ids, clean.wide)
    x[2, 4, 1] = torch.inf
    bad = Collector("pooled", half=True)({"p": block}, ids)["p"]
    with pytest.raises(EngineError, match="sample 'c' has NaN or infinite values at p"):
        split_rows("p", bad, ids, None)


@pytest.mark.parametrize("rows", ["both", "stats-only"])
def test_memory_is_flat_over_a_thousand_batches(rows: str, tmp_path: Path) -> None:
    loaded = tiny.text()
    data = ListDataset([Sample(f"s{i}", tiny.caption(i % 50)) for i in range(2000)])
    run = extract if rows == "both" else extract_moments
    held: list[tuple[int, int]] = []

    def look(phase: str, done: int, total: int) -> None:
        if phase == "capture" and done // 500 > len(held):
            gc.collect()
            found = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
            held.append((len(found), sum(item.numel() * item.element_size() for item in found)))

    made = config(tmp_path / "s", ("llm_hidden_1",), batch_size=2, rows=rows)
    run(made, model=loaded, data=data, progress=look)
    assert len(held) == 4
    # two batches are ahead and two behind the model at any time, more or less of them at each look
    assert max(count for count, _ in held[1:]) <= held[0][0] + 60
    assert max(size for _, size in held[1:]) <= held[0][1] + 200_000


def test_empty_texts_are_bad_texts(tmp_path: Path) -> None:
    loaded = tiny.text()
    data = ListDataset([Sample("a", "cat"), Sample("b", " "), Sample("c", "dog")])
    store = extract(config(tmp_path / "s", ("llm_final",), skip_bad=True), model=loaded, data=data)
    assert store.samples == ["a", "c"]
    assert read_skipped(tmp_path / "s") == [{"sample": "b", "reason": "it has no text"}]
