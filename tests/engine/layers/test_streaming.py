"""Layer streaming gives the whole model's states, one layer in memory at a time."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from modegap.engine.capture import ExtractConfig, extract, extract_moments
from modegap.engine.datasets import ListDataset
from modegap.engine.errors import EngineError
from modegap.engine.layers import CheckpointFiles
from modegap.engine.layers import passes as passes_module
from modegap.engine.models import LoadedModel, load
from modegap.stores import ActivationStore, verify

pytest.importorskip("accelerate")
tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
TEXT = ("text_embedding", "llm_*")
N_LAYERS = 3


def text_config(kind: str) -> Any:
    given = dict(tiny.TEXT)
    if kind.startswith("gemma"):
        given |= {"head_dim": 12, "sliding_window": 4}
    if kind == "mistral":
        given |= {"sliding_window": 4}
    name = {
        "llama": "Llama",
        "qwen2": "Qwen2",
        "mistral": "Mistral",
        "gemma2": "Gemma2",
        "gemma3": "Gemma3Text",
    }[kind]
    return getattr(hf, f"{name}Config")(**given)


def saved_text(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> LoadedModel:
    """A checkpoint in several files, and the same as a whole model."""
    torch.manual_seed(0)
    made = text_config(kind)
    for key, value in config.items():
        setattr(made, key, value)
    model = hf.AutoModelForCausalLM.from_config(made).to(dtype).eval()
    model.save_pretrained(folder, max_shard_size="60KB")
    tiny.tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return load(folder)


def saved_media(family: str, folder: Path) -> LoadedModel:
    loaded = tiny.FAMILIES[family][0]()
    loaded.model.save_pretrained(folder, max_shard_size="60KB")
    loaded.processor.save_pretrained(folder)
    return load(folder)


def config(model: Path, store: Path, points: tuple[str, ...] = TEXT, **more: Any) -> ExtractConfig:
    return ExtractConfig(str(model), "given", str(store), points, **{"batch_size": 3, **more})


def same_bits(ours: ActivationStore, theirs: ActivationStore) -> None:
    assert list(ours.points) == list(theirs.points)
    assert ours.samples == theirs.samples
    assert ours.labels.keys() == theirs.labels.keys()
    for point, info in theirs.points.items():
        for kind in ("tokens", "pooled") if info.rows == "both" else (info.rows,):
            found, expected = ours.rows(point, kind), theirs.rows(point, kind)
            assert found.shape == expected.shape
            stop = found.shape[0]
            np.testing.assert_array_equal(
                found.read(0, stop), expected.read(0, stop), err_msg=f"{point} {kind}"
            )
            if kind == "tokens":
                np.testing.assert_array_equal(found.modality(0, stop), expected.modality(0, stop))
                np.testing.assert_array_equal(found.token_ids(0, stop), expected.token_ids(0, stop))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gemma2", "gemma3"])
def test_text_models_give_the_same_bits(kind: str, tmp_path: Path) -> None:
    whole = saved_text(kind, tmp_path / "m")
    data = ListDataset(tiny.text_samples(14))
    expected = extract(config(tmp_path / "m", tmp_path / "a"), model=whole, data=data)
    made = config(tmp_path / "m", tmp_path / "b", stream_layers=True)
    store = extract(made, data=data)
    same_bits(store, expected)
    assert verify(store).ok
    assert not (tmp_path / "b.work").exists()
    assert set(store.provenance["parity"]) == set(store.points)
    assert store.provenance["model"] == str(tmp_path / "m")
    assert extract(made, data=data).content_hash() == store.content_hash()


@pytest.mark.parametrize("family", ["llava", "audio"])
def test_media_models_give_the_same_bits(family: str, tmp_path: Path) -> None:
    whole = saved_media(family, tmp_path / "m")
    data = ListDataset(tiny.FAMILIES[family][1](8))
    points = ("encoder_output", "adapter_output", "llm_*")
    expected = extract(config(tmp_path / "m", tmp_path / "a", points, target=True), model=whole, data=data)
    made = config(tmp_path / "m", tmp_path / "b", points, target=True, stream_layers=True)
    same_bits(extract(made, data=data), expected)
    text = config(tmp_path / "m", tmp_path / "c", TEXT, as_text=True)
    as_text = extract(text, model=whole, data=data)
    streamed = extract(replace(text, store=str(tmp_path / "d"), stream_layers=True), data=data)
    same_bits(streamed, as_text)


@pytest.mark.parametrize("rows", ["tokens", "pooled"])
def test_bf16_states_and_single_points(rows: str, tmp_path: Path) -> None:
    whole = saved_text("llama", tmp_path / "m", dtype=torch.bfloat16)
    data = ListDataset(tiny.text_samples(9))
    points = ("llm_hidden_2",)
    given = {"rows": rows, "dtype": "bfloat16"}
    expected = extract(config(tmp_path / "m", tmp_path / "a", points, **given), model=whole, data=data)
    store = extract(config(tmp_path / "m", tmp_path / "b", points, stream_layers=True, **given), data=data)
    assert whole.dtype == torch.bfloat16
    same_bits(store, expected)


def test_tied_embeddings_and_one_file(tmp_path: Path) -> None:
    whole = saved_text("qwen2", tmp_path / "m", tie_word_embeddings=True)
    whole.model.save_pretrained(tmp_path / "one")
    tiny.tokenizer().save_pretrained(tmp_path / "one")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    with CheckpointFiles(tmp_path / "one") as files:
        assert "lm_head.weight" not in files.keys
    data = ListDataset(tiny.text_samples(7))
    expected = extract(config(tmp_path / "m", tmp_path / "a"), model=whole, data=data)
    same_bits(extract(config(tmp_path / "one", tmp_path / "b", stream_layers=True), data=data), expected)


def test_weights_are_read_once_and_only_one_layer_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_text("llama", tmp_path / "m")
    read: list[str] = []
    held: list[int] = []
    original, layer = CheckpointFiles.read, passes_module.Passes.layer

    def counted(self: CheckpointFiles, key: str) -> torch.Tensor:
        read.append(key)
        return original(self, key)

    def watched(self: Any, k: int, feed: Any) -> None:
        layer(self, k, feed)
        assert all(p.device.type == "meta" for p in self.runner.layers[k].parameters())
        held.append(sum(p.device.type != "meta" for one in self.runner.layers for p in one.parameters()))

    monkeypatch.setattr(CheckpointFiles, "read", counted)
    monkeypatch.setattr(passes_module.Passes, "layer", watched)
    points = ("llm_hidden_2",)
    extract(
        config(tmp_path / "m", tmp_path / "s", points, stream_layers=True),
        data=ListDataset(tiny.text_samples(5)),
    )
    assert len(read) == len(set(read))
    assert held == [0, 0]
    assert any("layers.1." in key for key in read)
    assert not any("layers.2." in key or "lm_head" in key for key in read), "nothing above the last point"


@pytest.mark.parametrize(
    ("rows", "stop"),
    [
        ("both", "embed"),
        ("both", "layer 1 of 3"),
        ("both", "layer 3 of 3"),
        ("both", "store"),
        ("stats-only", "embed"),
        ("stats-only", "layer 2 of 3"),
    ],
)
def test_a_killed_run_goes_on_at_its_layer(rows: str, stop: str, tmp_path: Path) -> None:
    saved_text("gemma2", tmp_path / "m")
    data = ListDataset(tiny.text_samples(12))
    run = extract if rows == "both" else extract_moments
    whole = run(config(tmp_path / "m", tmp_path / "a", rows=rows, stream_layers=True), data=data)
    made = config(tmp_path / "m", tmp_path / "b", rows=rows, stream_layers=True)

    def kill(phase: str, done: int, total: int) -> None:
        if phase == stop and done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(made, data=data, progress=kill)
    phases: list[str] = []
    again = run(made, data=data, progress=lambda phase, done, total: phases.append(phase))
    order = ["embed", "layer 1 of 3", "layer 2 of 3", "layer 3 of 3"]
    expected = order[order.index(stop) :] if stop in order else []
    assert [phase for phase in dict.fromkeys(phases) if phase in order] == expected
    assert not (tmp_path / "b.work").exists()
    if isinstance(again, ActivationStore):
        assert isinstance(whole, ActivationStore)
        same_bits(again, whole)
        assert again.content_hash() == whole.content_hash()
    else:
        for point in whole.points:
            assert torch.equal(again.moments(point).covariance, whole.moments(point).covariance)


def test_statistics_are_those_of_the_whole_model(tmp_path: Path) -> None:
    whole = saved_text("llama", tmp_path / "m")
    data = ListDataset(tiny.text_samples(10))
    given: dict[str, Any] = {"rows": "stats-only", "by": "kind"}
    expected = extract_moments(config(tmp_path / "m", tmp_path / "a", **given), model=whole, data=data)
    made = extract_moments(config(tmp_path / "m", tmp_path / "b", stream_layers=True, **given), data=data)
    for point in expected.points:
        for kind in ("tokens", "pooled"):
            assert torch.equal(made.moments(point, kind).covariance, expected.moments(point, kind).covariance)
            ours, theirs = made.class_moments(point, kind), expected.class_moments(point, kind)
            assert ours[1] == theirs[1]
            torch.testing.assert_close(
                ours[0].class_mean, theirs[0].class_mean, rtol=0, atol=0, equal_nan=True
            )


def test_padding_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = saved_text("llama", tmp_path / "m")
    with torch.no_grad():
        whole.model.get_input_embeddings().weight[0] = 1e3
    whole.model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    data = ListDataset(tiny.text_samples(9))
    together = extract(config(tmp_path / "m", tmp_path / "a", batch_size=9, stream_layers=True), data=data)
    alone = extract(config(tmp_path / "m", tmp_path / "b", batch_size=1, stream_layers=True), data=data)
    for index in range(9):
        np.testing.assert_allclose(
            together.rows("llm_final").sample(index).astype(np.float32),
            alone.rows("llm_final").sample(index).astype(np.float32),
            rtol=2e-3,
            atol=1e-3,
        )
    monkeypatch.setattr(passes_module, "_padded", lambda rows, attention: torch.roll(
        rows.new_zeros((attention.numel(), rows.shape[1])).index_copy_(
            0, attention.flatten().nonzero().squeeze(1), rows
        ).reshape(*attention.shape, rows.shape[1]), 1, dims=1))  # fmt: skip
    with pytest.raises(EngineError, match="parity check failed at llm_hidden_"):
        extract(config(tmp_path / "m", tmp_path / "c", batch_size=9, stream_layers=True), data=data)


def test_refusals(tmp_path: Path) -> None:
    whole = saved_text("llama", tmp_path / "m")
    data = ListDataset(tiny.text_samples(4))
    made = config(tmp_path / "m", tmp_path / "s", stream_layers=True)
    with pytest.raises(ValueError, match="give its id"):
        extract(made, model=whole, data=data)
    with pytest.raises(ValueError, match="choose one of the two"):
        replace(made, device_map="auto")
    with pytest.raises(ValueError, match="got work without stream_layers"):
        config(tmp_path / "m", tmp_path / "s", work="x")
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine").write_text("")
    with pytest.raises(EngineError, match="is not empty; choose another folder"):
        extract(replace(made, work=str(tmp_path / "w")), data=data)

    def kill(phase: str, done: int, total: int) -> None:
        if phase.startswith("layer 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(made, data=data, progress=kill)
    with pytest.raises(EngineError, match=r"hidden states of another run \(config differ\)"):
        extract(replace(made, prompt="cat"), data=data)
    state = next((tmp_path / "s.work" / "states" / "1").glob("*.safetensors"))
    damaged = bytearray(state.read_bytes())
    damaged[-3] ^= 64
    state.write_bytes(bytes(damaged))
    with pytest.raises(EngineError, match="fails its checksum"):
        extract(made, data=data)
    for file in (tmp_path / "m").glob("*.safetensors"):
        file.unlink()
    other = replace(made, store=str(tmp_path / "t"))
    with pytest.raises(EngineError, match=r"is missing, which model\.safetensors\.index\.json names"):
        extract(other, data=data)
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    with pytest.raises(EngineError, match="has no safetensors files"):
        extract(other, data=data)
