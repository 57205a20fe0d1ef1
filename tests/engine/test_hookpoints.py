"""Every hook point is the tensor that transformers says it is, whatever the module paths."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from torch import nn

from modegap.engine.capture import Capturer
from modegap.engine.errors import EngineError
from modegap.engine.models import adopt, describe
from modegap.engine.models.structure import read_structure

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_hidden_state_is_transformers_own(family: str, side: str) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded = make(side)
    inputs = loaded.collate(samples(3), target=True)
    with torch.no_grad():
        theirs = loaded.forward(inputs, output_hidden_states=True).hidden_states
    with Capturer(loaded, loaded.select(["llm_*"])) as capture:
        ours = capture(inputs)
    assert len(theirs) == 4
    for k, expected in enumerate(theirs):
        assert torch.equal(ours[f"llm_hidden_{k}"].x, expected), k
    assert torch.equal(ours["llm_final"].x, theirs[-1])
    assert not torch.equal(theirs[1], theirs[2]), "equal layers would prove nothing"


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_llava_encoder_output_is_what_the_adapter_is_fed(layer: int) -> None:
    loaded = tiny.llava(layer=layer)
    inputs = loaded.collate(tiny.image_samples(3))
    parts = {
        name: loaded.model.get_submodule(getattr(loaded.structure, name)) for name in ("encoder", "adapter")
    }
    with torch.no_grad():
        states = parts["encoder"](inputs.tensors["pixel_values"], output_hidden_states=True).hidden_states
        fed = states[layer][:, 1:]  # without CLS
        projected = parts["adapter"](fed)
    with Capturer(loaded, loaded.select(["encoder_output", "adapter_output"])) as capture:
        found = capture(inputs)
    assert torch.equal(found["encoder_output"].x, fed)
    assert torch.equal(found["adapter_output"].x, projected)
    assert found["adapter_output"].mask.all()


def test_adapter_rows_are_what_the_decoder_reads_at_the_placeholders() -> None:
    for loaded, samples in ((tiny.llava(), tiny.image_samples(3)), (tiny.audio(), tiny.audio_samples(5))):
        inputs = loaded.collate(samples)
        with Capturer(loaded, loaded.select(["adapter_output", "llm_hidden_0"])) as capture:
            found = capture(inputs)
        adapter, first = found["adapter_output"], found["llm_hidden_0"]
        for i in range(len(samples)):
            assert torch.equal(adapter.x[i][adapter.mask[i]], first.x[i][inputs.modality[i] > 1])


def test_qwen2_audio_encoder_rows_stop_at_the_end_of_the_sound() -> None:
    loaded = tiny.audio()
    inputs = loaded.collate(tiny.audio_samples(6))
    with Capturer(loaded, loaded.select(["encoder_output"])) as capture:
        block = capture(inputs)["encoder_output"]
    assert block.mask.sum(dim=1).tolist() == inputs.media_counts == [5, 7, 10, 12, 15, 17]
    assert block.x.shape[1] == 25


def test_text_embedding_is_the_embedding_of_the_text_without_special_tokens() -> None:
    for family in ("llava", "llama", "gpt2"):
        make, samples = tiny.FAMILIES[family]
        loaded = make()
        batch = samples(4)
        with Capturer(loaded, loaded.select(["text_embedding"])) as capture:
            block = capture(loaded.collate(batch))["text_embedding"]
        weight = loaded.model.get_input_embeddings().weight
        tokens = loaded.collator.tokenizer
        for i, sample in enumerate(batch):
            ids = tokens(sample.text, add_special_tokens=False)["input_ids"]
            assert torch.equal(block.x[i][block.mask[i]], weight[ids])


class OldLayout(nn.Module):
    """LLaVA's parts in transformers 4.50: no `model.` in front, a decoder with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        new = tiny.llava()
        self.vision_tower = nn.Module()
        self.vision_tower.vision_model = new.model.get_submodule(new.structure.encoder)
        self.multi_modal_projector = new.model.get_submodule(new.structure.adapter)
        self.language_model = hf.LlamaForCausalLM(hf.LlamaConfig(**tiny.TEXT))

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()


def test_structure_of_the_old_layout() -> None:
    parts = read_structure(OldLayout())
    assert parts.decoder == "language_model.model"
    assert parts.layers == "language_model.model.layers"
    assert parts.norm == "language_model.model.norm"
    assert parts.encoder == "vision_tower"
    assert parts.adapter == "multi_modal_projector"
    assert (parts.n_layers, parts.hidden_size) == (3, 48)


@pytest.mark.skipif(
    not hasattr(hf, "Qwen2_5_VLTextConfig"), reason="transformers 4.50 has no text config for it"
)
def test_structure_where_the_adapter_is_a_child_of_the_encoder() -> None:
    vision = {"hidden_size": 32, "depth": 2, "num_heads": 4, "out_hidden_size": 48, "intermediate_size": 64}
    config = hf.Qwen2_5_VLConfig(text_config=dict(tiny.TEXT), vision_config=vision)
    parts = read_structure(hf.Qwen2_5_VLForConditionalGeneration(config))
    assert parts.encoder.endswith("visual")
    assert parts.adapter.endswith("visual.merger")


def test_structure_with_an_encoder_as_wide_as_the_decoder() -> None:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=8,
            patch_size=4,
        ),
        text_config=hf.LlamaConfig(**tiny.TEXT),
        image_token_index=4,
    )
    parts = read_structure(hf.LlavaForConditionalGeneration(config))
    assert parts.adapter.endswith("multi_modal_projector")


def test_unknown_points_name_the_nearest_and_the_available() -> None:
    loaded = tiny.llava()
    with pytest.raises(EngineError, match=r"no hook point 'adapter_ouput'.*did you mean 'adapter_output'"):
        loaded.select(["adapter_ouput"])
    with pytest.raises(EngineError, match="llm_hidden_0 to llm_hidden_3"):
        loaded.select(["llm_hidden_16"])
    with pytest.raises(EngineError, match=r"no hook point 'llm_hidden_-1'.*'llm_final'"):
        loaded.select(["llm_hidden_-1"])
    with pytest.raises(EngineError, match="no hook points asked for"):
        loaded.select([])


def test_a_text_model_has_no_adapter_output() -> None:
    with pytest.raises(
        EngineError, match=r"tiny/llama has no modality encoder, so no adapter_output.*text_embedding"
    ):
        tiny.text().select(["adapter_output"])


def test_globs_select_in_order_and_once() -> None:
    names = [point.name for point in tiny.text().select(["llm_hidden_2", "llm_hidden_*"])]
    assert names == ["llm_hidden_2", "llm_hidden_0", "llm_hidden_1", "llm_hidden_3"]


def test_points_of_the_users_own() -> None:
    made = tiny.llava()
    stack = next(path for path, _ in made.model.named_modules() if path.endswith("encoder.layers"))
    points = {"clip_2": f"{stack}.1", "mlp_in": f"{made.structure.layers}.1.mlp:input"}
    loaded = adopt(made.model, made.processor, points=points)
    inputs = loaded.collate(tiny.image_samples(2))
    tower = made.model.get_submodule(made.structure.encoder)
    with torch.no_grad():
        states = tower(inputs.tensors["pixel_values"], output_hidden_states=True).hidden_states
    with Capturer(loaded, loaded.select(list(points))) as capture:
        found = capture(inputs)
    assert torch.equal(found["clip_2"].x, states[2])  # CLS included: rows of its own
    assert found["clip_2"].mask.all()
    assert torch.equal(found["mlp_in"].mask, inputs.attention)
    with pytest.raises(
        EngineError, match=r"has no module '.*encoder\.layer\.1'; the nearest is '.*layers\.1'"
    ):
        adopt(made.model, made.processor, points={"x": stack[:-1] + ".1"})
    with pytest.raises(EngineError, match=r"expected module\.path"):
        adopt(made.model, made.processor, points={"x": f"{stack}:middle"})


def test_describe_folds_the_layers() -> None:
    rows = describe(tiny.llava())
    assert [row["point"] for row in rows] == [
        "encoder_output",
        "adapter_output",
        "text_embedding",
        "llm_hidden_0",
        "llm_hidden_1 to llm_hidden_2",
        "llm_hidden_3",
        "llm_final",
    ]
    assert rows[0]["takes"] == "input"
    assert rows[1]["class"] == "LlavaMultiModalProjector"
    assert rows[4]["module"].endswith("layers.0 to .1")


def test_a_model_without_a_decoder_needs_points() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.body(nn.functional.one_hot(input_ids % 4, 4).float())

    with pytest.raises(EngineError, match="points="):
        adopt(Odd(), tiny.tokenizer())
    loaded = adopt(Odd(), tiny.tokenizer(), points={"llm_final": "body"})
    inputs = loaded.collate(tiny.text_samples(3))
    with Capturer(loaded, loaded.select(["llm_final"])) as capture:
        block = capture(inputs)["llm_final"]
    assert block.x.shape == (*inputs.attention.shape, 4)
