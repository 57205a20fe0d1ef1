"""`extract`: the store holds what plain forwards give, under every condition."""

from __future__ import annotations

import inspect
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import Capturer, ExtractConfig, extract, read_retries, record
from modegap.engine.capture.schedule import Batching, schedule
from modegap.engine.datasets import ListDataset, Sample, as_text
from modegap.engine.errors import EngineError
from modegap.engine.models import Collator, LoadedModel, adopt
from modegap.stores import ActivationStore, StoreError, verify

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def config(path: Path, points: tuple[str, ...] = ("*",), **more) -> ExtractConfig:
    return ExtractConfig("given", "given", str(path / "s.zarr"), points, **{"batch_size": 3, **more})


def tokens(store: ActivationStore, point: str, index: int) -> np.ndarray:
    return store.rows(point).sample(index)


def plain(loaded: LoadedModel, sample: Sample) -> dict[str, np.ndarray]:
    """hidden_states and adapter output of one sample, by transformers alone."""
    inputs = loaded.collate([sample])
    kept = {}
    handles = []
    if loaded.structure.adapter:
        module = loaded.model.get_submodule(loaded.structure.adapter)
        handles.append(module.register_forward_hook(lambda m, args, out: kept.update(e=args[0][0], a=out[0])))
    with torch.no_grad():
        hidden = loaded.model(**inputs.tensors, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    found = {f"llm_hidden_{k}": state[0].numpy() for k, state in enumerate(hidden)}
    found["llm_final"] = hidden[-1][0].numpy()
    count = inputs.media_counts[0]
    if kept:
        found |= {"encoder_output": kept["e"][:count].numpy(), "adapter_output": kept["a"][:count].numpy()}
    return found


@pytest.mark.parametrize("family", ["llava", "audio", "gpt2"])
def test_the_store_holds_plain_forwards(family: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded, batch = make(), samples(14)
    store = extract(config(tmp_path), model=loaded, data=ListDataset(batch))
    assert store.n_complete == 14
    assert verify(store).ok
    for index, sample in enumerate(batch):
        for point, expected in plain(loaded, sample).items():
            found = tokens(store, point, index).astype(np.float32)
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4, err_msg=f"{point} {sample.id}")
            pooled = store.rows(point, "pooled").sample(index)[0].astype(np.float32)
            np.testing.assert_allclose(pooled, expected.mean(axis=0), rtol=2e-3, atol=1e-3, err_msg=point)


def test_ids_labels_tokens_and_provenance(tmp_path: Path) -> None:
    loaded, batch = tiny.llava(), tiny.image_samples(7)
    ticks: list[tuple[str, int, int]] = []
    store = extract(
        config(tmp_path),
        model=loaded,
        data=ListDataset(batch, "mine"),
        progress=lambda *tick: ticks.append(tick),
    )
    assert store.samples == [sample.id for sample in batch]
    assert store.labels["kind"].values == tuple(tiny.labels(i)["kind"] for i in range(7))
    assert store.labels["score"].values == tuple(i / 4 for i in range(7))
    assert store.labels["note"].values == tuple(tiny.labels(i)["note"] for i in range(7))
    assert store.labels["text"].values == tuple(sample.text for sample in batch)
    origin = store.provenance
    assert origin["model"] == "tiny/llava"
    assert origin["dataset"] == "mine"
    assert origin["dtype"] == "float32"
    assert origin["prompt"] == "<image>\nDescribe this image."
    assert origin["modules"]["adapter_output"] == f"{loaded.structure.adapter}:output"
    assert set(origin["versions"]) >= {"torch", "transformers", "zarr"}
    assert set(origin["parity"]) == set(store.points)
    assert all(0 <= gap["max_rel"] <= gap["tolerance"] < 6e-4 for gap in origin["parity"].values())
    rows = store.rows("llm_final")
    inputs = loaded.collate([batch[2]])
    start, stop = rows.sample_range(2)
    assert rows.modality(start, stop).tolist() == inputs.modality[0].tolist()
    start, stop = store.rows("adapter_output").sample_range(3)
    assert store.rows("adapter_output").modality(start, stop).tolist() == [2] * 16
    assert store.rows("text_embedding").shape[0] == sum(len(s.text.split()) for s in batch)
    assert ticks[-1] == ("capture", 7, 7)
    assert [tick[1] for tick in ticks if tick[0] == "tokenise"] == list(range(1, 8))


@pytest.mark.parametrize("rows", ["tokens", "pooled"])
def test_only_the_rows_asked_for(rows: str, tmp_path: Path) -> None:
    store = extract(
        config(tmp_path, ("adapter_output", "llm_hidden_1"), rows=rows),
        model=tiny.audio(),
        data=audio_data(8),
    )
    assert {info.rows for info in store.points.values()} == {rows}
    assert list(store.points) == ["adapter_output", "llm_hidden_1"]
    assert store.n_complete == 8


def audio_data(count: int) -> ListDataset:
    return ListDataset(tiny.audio_samples(count))


def test_store_dtype_limit_target_and_prompt(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(9))
    made = config(tmp_path, ("llm_hidden_2",), store_dtype="float32", limit=5, target=True, prompt="cat")
    store = extract(made, model=loaded, data=data)
    assert len(store.samples) == 5
    assert store.points["llm_hidden_2"].dtype == "float32"
    inputs = loaded.collate([data[4]], target=True, prompt="cat")
    with torch.no_grad():
        expected = loaded.model(**inputs.tensors, output_hidden_states=True).hidden_states[2][0]
    np.testing.assert_allclose(tokens(store, "llm_hidden_2", 4), expected, rtol=1e-4, atol=1e-5)
    assert store.provenance["prompt"] == "<image>\ncat"


def test_the_text_law_of_a_media_data_set(tmp_path: Path) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(6))
    one = extract(config(tmp_path / "a", ("llm_hidden_1",), as_text=True), model=loaded, data=data)
    two = extract(config(tmp_path / "b", ("llm_hidden_1",)), model=loaded, data=as_text(data))
    three = extract(config(tmp_path / "c", ("llm_*", "text_embedding")), model=tiny.text(), data=data)
    np.testing.assert_array_equal(tokens(one, "llm_hidden_1", 3), tokens(two, "llm_hidden_1", 3))
    assert one.samples == three.samples == list(data.ids)
    assert len(tokens(one, "llm_hidden_1", 3)) == 1 + len(data[3].text.split())
    assert one.labels["kind"].values == three.labels["kind"].values
    with pytest.raises(EngineError, match="text does not pass the adapter"):
        extract(config(tmp_path / "d", as_text=True), model=loaded, data=data)
    with pytest.raises(EngineError, match="holds audio, tiny/llava takes image"):
        extract(config(tmp_path / "e"), model=loaded, data=audio_data(2))


def test_text_embeddings_alone_run_no_forward_and_decode_no_media(tmp_path: Path) -> None:
    class Blind(ListDataset):
        def row(self, index: int) -> Sample:
            return replace(super().__getitem__(index), media=None)

        def __getitem__(self, index: int) -> Sample:
            raise AssertionError("decoded")

    loaded = tiny.llava()
    ran: list[int] = []
    loaded.model.register_forward_pre_hook(lambda *_: ran.append(1))
    store = extract(config(tmp_path, ("text_embedding",)), model=loaded, data=Blind(tiny.image_samples(5)))
    assert not ran
    weight = loaded.model.get_input_embeddings().weight.detach().half().numpy()
    ids = loaded.processor.tokenizer(tiny.caption(4), add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(tokens(store, "text_embedding", 4), weight[ids])


def test_a_fixed_image_size_decodes_every_image_once_and_the_first_three_times(tmp_path: Path) -> None:
    class Counting(ListDataset):
        decoded: list[str]

        def row(self, index: int) -> Sample:
            return replace(super().__getitem__(index), media=None)

        def __getitem__(self, index: int) -> Sample:
            self.decoded.append(self.ids[index])
            return super().__getitem__(index)

    data = Counting(tiny.image_samples(8))
    data.decoded = []
    extract(config(tmp_path, ("llm_final",), batch_size=2, target=True), model=tiny.llava(), data=data)
    times = [data.decoded.count(sample_id) for sample_id in data.ids]
    assert sum(times) == 8 + 1 + 2  # capture, tokenise, parity batch
    assert min(times) == 1


def test_parity_fails_on_a_layer_off_by_one(tmp_path: Path) -> None:
    made = tiny.llava()
    off = adopt(made.model, made.processor, points={"llm_hidden_2": f"{made.structure.layers}.0"})
    with pytest.raises(EngineError, match="parity check failed at llm_hidden_2"):
        extract(config(tmp_path, ("llm_hidden_2",)), model=off, data=ListDataset(tiny.image_samples(4)))
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("breakage", ["shift", "positions"])
def test_parity_fails_on_broken_batching(
    breakage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny.text("gpt2")
    collate, place = Collator.collate, LoadedModel.place

    def shifted(self, *args, **options):
        made = collate(self, *args, **options)
        return replace(made, attention=made.attention.roll(1, dims=1)) if len(made) > 1 else made

    def counted(self, inputs):
        placed = place(self, inputs)
        if len(placed) > 1:
            width = placed.attention.shape[1]
            placed.tensors["position_ids"] = torch.arange(width).expand(len(placed), width)
        return placed

    if breakage == "shift":
        monkeypatch.setattr(Collator, "collate", shifted)
    else:
        monkeypatch.setattr(LoadedModel, "place", counted)
    with pytest.raises(EngineError, match="parity check failed at llm_hidden_1"):
        extract(config(tmp_path, ("llm_hidden_1",)), model=loaded, data=ListDataset(tiny.text_samples(6)))


def limited(loaded: LoadedModel, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The model runs out of memory above `most` samples a forward; returns the batch sizes tried."""
    sizes: list[int] = []
    forward = loaded.model.forward

    def small(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(*args, **kwargs)

    small.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(loaded.model, "forward", small)
    return sizes


def test_out_of_memory_halves_the_batch_and_keeps_every_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, data = tiny.llava(), ListDataset(tiny.image_samples(11))
    whole = extract(config(tmp_path / "a", batch_size=4), model=loaded, data=data)
    sizes = limited(loaded, 2, monkeypatch)
    parts = extract(config(tmp_path / "b", batch_size=4), model=loaded, data=data)
    assert max(sizes) == 4
    assert sizes.count(4) == 1, "the smaller size must stay"
    assert parts.n_complete == 11
    for point in whole.points:
        for index in range(11):
            np.testing.assert_allclose(
                tokens(whole, point, index).astype(np.float32),
                tokens(parts, point, index).astype(np.float32),
                rtol=2e-3,
                atol=1e-3,
            )
    (entry,) = read_retries(tmp_path / "b" / "s.zarr")
    assert entry["next_batch_size"] == 2
    assert len(entry["samples"]) == 4
    assert read_retries(tmp_path / "a" / "s.zarr") == []
    assert ActivationStore.open(tmp_path / "b" / "s.zarr").n_complete == 11
    assert verify(parts).ok


def test_a_sample_that_never_fits_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.llava()
    limited(loaded, 0, monkeypatch)
    with pytest.raises(EngineError, match=r"sample 'image-.*' alone does not fit into memory"):
        extract(config(tmp_path), model=loaded, data=ListDataset(tiny.image_samples(3)))


def test_an_existing_store(tmp_path: Path) -> None:
    loaded, data = tiny.text(), ListDataset(tiny.text_samples(5))
    made = config(tmp_path, ("llm_final",))
    first = extract(made, model=loaded, data=data).content_hash()
    again = extract(made, model=loaded, data=data)
    assert again.content_hash() == first
    with pytest.raises(EngineError, match="exists; choose another store"):
        extract(replace(made, resume=False), model=loaded, data=data)
    with pytest.raises(StoreError, match="another plan"):
        extract(replace(made, points=("llm_hidden_1",)), model=loaded, data=data)
    with pytest.raises(StoreError, match="another plan"):
        extract(replace(made, prompt="cat"), model=loaded, data=data)


def test_names_that_the_store_refuses_fail_before_any_work(tmp_path: Path) -> None:
    loaded = tiny.text()
    samples = [Sample("a", "cat", labels={"speaker id": 1}), Sample("b", "dog", labels={"speaker id": 2})]
    ticks: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match="label name 'speaker id' is not allowed"):
        extract(
            config(tmp_path, ("llm_final",)),
            model=loaded,
            data=ListDataset(samples),
            progress=lambda *tick: ticks.append(tick),
        )
    assert not ticks


def test_nan_stops_before_the_sample_and_names_it(tmp_path: Path) -> None:
    loaded = tiny.text()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[loaded.processor.convert_tokens_to_ids("dog")] = torch.inf
    samples = [Sample(f"s{i}", "a cat" if i != 7 else "a dog") for i in range(9)]
    with pytest.raises(EngineError, match="sample 's7' has NaN or infinite"):
        extract(config(tmp_path, ("llm_hidden_0",), batch_size=1), model=loaded, data=ListDataset(samples))


def test_fp16_overflow_is_scaled_and_passes_parity(tmp_path: Path) -> None:
    loaded = tiny.text()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.mul_(1e6)
    data = ListDataset(tiny.text_samples(6))
    store = extract(config(tmp_path, ("llm_hidden_0", "llm_final")), model=loaded, data=data)
    with Capturer(loaded, loaded.select(["llm_hidden_0"])) as capture:
        expected = capture(loaded.collate([data[5]]))["llm_hidden_0"].x[0].numpy()
    assert np.abs(expected).max() > 65504
    np.testing.assert_allclose(tokens(store, "llm_hidden_0", 5), expected, rtol=1e-3)


def test_the_schedule_covers_every_sample_once_and_depends_on_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for count, size in [(1, 1), (7, 3), (100, 8), (33, 4)]:
        lengths = rng.integers(1, 50, size=count)
        windows = list(schedule(lengths, count, Batching(size)))
        assert sorted(i for w in windows for batch in w.batches for i in batch) == list(range(count))
        assert [w.start for w in windows] == list(range(0, count, 4 * size))
        for window in windows:
            ordered = [lengths[i] for batch in window.batches for i in batch]
            assert ordered == sorted(ordered, reverse=True)
            assert all(window.start <= i < window.stop for batch in window.batches for i in batch)
        assert windows == list(schedule(lengths, count, Batching(size)))


def test_sizes_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got batch_size 0"):
        config(tmp_path, batch_size=0)
    with pytest.raises(ValueError, match="got limit 0"):
        config(tmp_path, limit=0)


def test_a_store_behind_a_url_is_put_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded, data = tiny.text(), ListDataset(tiny.text_samples(2))
    away = replace(config(tmp_path, ("llm_final",)), store="s3://bucket/x.zarr")
    with pytest.raises(EngineError, match=r"writes to a local folder, got s3://bucket/x\.zarr"):
        extract(away, model=loaded, data=data)
    with (
        pytest.raises(EngineError, match="writes to a local folder"),
        record(loaded, ["llm_final"], away.store),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
