"""Prompts, padding, targets and what stands at every position."""

from __future__ import annotations

import runpy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.datasets import ListDataset, Sample, batches
from modegap.engine.errors import EngineError
from modegap.engine.models import Collator
from modegap.engine.models.prompts import style_of

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def real(inputs, row: int) -> list[int]:
    return inputs.tensors["input_ids"][row][inputs.attention[row]].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_llava_prompt_with_target(side: str) -> None:
    loaded = tiny.llava(side)
    samples = tiny.image_samples(4)
    inputs = loaded.collate(samples, target=True)
    tokens = loaded.processor.tokenizer
    for row, sample in enumerate(samples):
        text = tokens(sample.text, add_special_tokens=False)["input_ids"]
        prompt = tokens("<image>" * 16 + "\nDescribe this image.")["input_ids"]
        assert real(inputs, row) == prompt + text
        assert inputs.tensors["input_ids"][row][inputs.target_mask[row]].tolist() == text
        kinds = inputs.modality[row][inputs.attention[row]].tolist()
        assert kinds == [1] + [2] * 16 + [1] * (len(prompt) - 17 + len(text))
    assert (inputs.modality[~inputs.attention] == 0).all()
    first = inputs.attention[0]
    assert bool(first[0]) is (side == "right")
    assert inputs.media_counts == [16] * 4
    positions = inputs.tensors["position_ids"]
    for row in range(4):
        count = int(inputs.attention[row].sum())
        assert positions[row][inputs.attention[row]].tolist() == list(range(count))


def test_targets_are_left_out_unless_asked() -> None:
    inputs = tiny.llava().collate(tiny.image_samples(2))
    assert not inputs.target_mask.any()
    assert real(inputs, 0) == real(inputs, 1)


def test_qwen2_audio_uses_its_chat_template() -> None:
    loaded = tiny.audio("right")
    samples = tiny.audio_samples(3)
    inputs = loaded.collate(samples, target=True)
    written = [loaded.processor.tokenizer.decode(real(inputs, row)) for row in range(3)]
    assert written[0].startswith("<s> <|audio_bos|> <|AUDIO|>")
    assert "Describe this audio" in written[0].replace(" .", ".")
    assert written[1].endswith("</s> " + samples[1].text)
    assert inputs.media_counts == [5, 7, 10]
    assert inputs.frames == ([20, 30, 40], 100)
    assert set(inputs.modality.flatten().tolist()) == {0, 1, 3}


def test_qwen2_audio_without_a_chat_template_gets_the_markers() -> None:
    processor = tiny.audio().processor
    style = style_of(processor, "audio")
    assert style.wrap == "chat"
    processor.chat_template = None
    plain = style_of(processor, "audio")
    assert plain.render(processor, None) == "<|audio_bos|><|AUDIO|><|audio_eos|>Describe this audio."
    assert plain.render(processor, "a <|AUDIO|> b") == "a <|AUDIO|> b"


def test_prompts_of_samples_and_of_the_call() -> None:
    loaded = tiny.llava()
    first, second = tiny.image_samples(2)
    inputs = loaded.collate([replace(first, prompt="cat ?"), second], prompt="dog")
    tokens = loaded.processor.tokenizer
    assert tokens.decode(real(inputs, 0)).endswith("cat <unk>")
    assert tokens.decode(real(inputs, 1)).endswith("<image> dog")
    verbatim = loaded.collate([first], prompt="photo of <image> dog")
    assert tokens.decode(real(verbatim, 0)).startswith("<s> photo of <image>")


@pytest.mark.parametrize("bos", [True, False])
def test_text_baseline_scores_what_something_precedes(bos: bool) -> None:
    loaded = tiny.text(bos=bos)
    sample = Sample("x", "a b c")
    inputs = loaded.collate([sample], target=True)
    ids = loaded.processor(sample.text, add_special_tokens=False)["input_ids"]
    assert real(inputs, 0) == ([2] if bos else []) + ids
    assert inputs.target_mask[0].tolist() == ([False, True, True, True] if bos else [False, True, True])
    asked = loaded.collate([sample], target=True, prompt="d e")
    assert asked.target_mask[0].tolist() == [False] * (2 + bos) + [True] * 3


def test_a_text_model_reads_the_text_of_media_samples() -> None:
    samples = tiny.image_samples(3)
    inputs = tiny.text().collate(samples)
    bare = tiny.text().collate([Sample(s.id, s.text) for s in samples])
    assert torch.equal(inputs.tensors["input_ids"], bare.tensors["input_ids"])
    assert set(inputs.tensors) == {"input_ids", "attention_mask", "position_ids"}


def test_audio_is_resampled() -> None:
    loaded = tiny.audio()
    seconds = np.sin(2 * np.pi * 440 * np.arange(8000 * 0.4) / 8000).astype(np.float32)
    slow = loaded.collate([Sample("x", "a", (seconds, 8000))])
    again = np.sin(2 * np.pi * 440 * np.arange(16000 * 0.4) / 16000).astype(np.float32)
    fast = loaded.collate([Sample("x", "a", (again, 16000))])
    assert slow.media_counts == fast.media_counts
    inner = slice(4, 36)  # the edges of a resampled signal ring
    gap = slow.tensors["input_features"][..., inner] - fast.tensors["input_features"][..., inner]
    assert gap.abs().mean() < 0.05


def test_too_long_audio_warns_with_the_sample() -> None:
    loaded = tiny.audio()
    with pytest.warns(UserWarning, match="sample 'long' lasts 1.5 s"):
        loaded.collate([Sample("long", "a", (np.zeros(24000, dtype=np.float32), 16000))])


def test_errors_name_the_sample() -> None:
    image, sound = tiny.image_samples(2), tiny.audio_samples(1)
    llava, audio = tiny.llava(), tiny.audio()
    with pytest.raises(EngineError, match="sample 'audio-0' has media of type tuple, the model takes images"):
        llava.collate(sound)
    with pytest.raises(EngineError, match=r"sample 'image-0' .*the model takes audio"):
        audio.collate(image[:1])
    with pytest.raises(EngineError, match="sample 'bare' has no media, others"):
        llava.collate([image[0], Sample("bare", "a")])
    with pytest.raises(EngineError, match="sample 'image-1' has no target tokens"):
        llava.collate([image[0], replace(image[1], text="")], target=True)
    with pytest.raises(EngineError, match="sample 'e' has no text"):
        tiny.text(bos=False).collate([Sample("e", "")])
    with pytest.raises(EngineError, match="sample 'l' has 201 tokens, the model takes 128"):
        tiny.text().collate([Sample("l", "a " * 200)])
    with pytest.raises(EngineError, match="expected mono"):
        audio.collate([Sample("s", "a", (np.zeros((2, 9)), 16000))])
    with pytest.raises(ValueError, match="no samples"):
        llava.collate([])


def test_batches_by_processor_and_by_model() -> None:
    data = ListDataset(tiny.image_samples(5))
    loaded = tiny.llava()
    by_model = list(batches(data, loaded, 2))
    by_processor = list(batches(data, loaded.processor, 2))
    assert [batch.ids for batch in by_model] == [["image-0", "image-1"], ["image-2", "image-3"], ["image-4"]]
    for ours, plain in zip(by_model, by_processor, strict=True):
        assert torch.equal(ours.tensors["input_ids"], plain.tensors["input_ids"])
        assert torch.equal(ours.modality, plain.modality)
        assert ours.samples[0].media is None
        assert ours.samples[0].labels == plain.samples[0].labels != {}
    with pytest.raises(ValueError, match="batch_size 0"):
        next(batches(data, loaded, 0))
    with pytest.raises(EngineError, match="AutoProcessor"):
        Collator(loaded.processor.image_processor)


def test_wrap_takes_a_processors_own_output() -> None:
    loaded = tiny.llava()
    samples = tiny.image_samples(2)
    tensors = loaded.processor(
        text=["<image> cat", "<image> photo of dog"],
        images=[sample.media for sample in samples],
        padding=True,
        return_tensors="pt",
    )
    inputs = loaded.place(loaded.collator.wrap(dict(tensors), ["p", "q"]))
    assert inputs.media_counts == [16, 16]
    assert [sample.text for sample in inputs.samples] == ["cat", "photo of dog"]
    with pytest.raises(EngineError, match="give one a row"):
        loaded.collator.wrap(dict(tensors), ["p"])
    with pytest.raises(EngineError, match="without input_ids"):
        loaded.collator.wrap({"pixel_values": tensors["pixel_values"]}, ["p", "q"])


def test_threads_take_turns_at_the_tokenizer() -> None:
    """Padding is a setting of the tokenizer: without turns a call gets another thread's, or an error."""
    loaded = tiny.llava("left")
    collator, samples = loaded.collator, tiny.image_samples(3)
    lengths = [collator.text_length(sample) for sample in samples]
    expected = loaded.collate(samples).tensors["input_ids"]
    stop = threading.Event()

    def measure() -> int:
        times = 0
        while not stop.is_set():
            assert [collator.text_length(sample) for sample in samples] == lengths
            times += 1
        return times

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(measure)
        try:
            for _ in range(30):
                torch.testing.assert_close(loaded.collate(samples).tensors["input_ids"], expected)
        finally:
            stop.set()
        assert beside.result() > 0
