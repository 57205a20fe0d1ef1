"""Hook points and replay of other families: what transformers itself computes, whatever the module paths."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modegap.engine.capture import Capturer
from modegap.engine.errors import EngineError
from modegap.engine.models import Inputs, LoadedModel, adopt, edit
from modegap.engine.models.structure import _final_norm, _input_embeddings, read_structure

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("families.py"))))
NAMES = list(made.FAMILIES)
OLD_DEEPSTACK = "transformers 4 adds deepstack rows to its recorded hidden states in place"


@cache
def small(name: str) -> tuple[LoadedModel, Inputs]:
    family = made.FAMILIES[name]
    if not family.installed():
        pytest.skip(f"the installed transformers has no {family.needs[0]}")
    torch.manual_seed(0)
    model, tensors = family.make()
    loaded = adopt(model.eval(), made.processor(family.modality), name=f"small/{name}")
    return loaded, loaded.place(loaded.collator.wrap(tensors, ["first", "second"]))


def fed(loaded: LoadedModel, inputs: Inputs) -> torch.Tensor:
    """What enters the first decoder layer, seen by a hook of the test's own."""
    seen: list[torch.Tensor] = []

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = loaded.model.get_submodule(f"{loaded.structure.layers}.0").register_forward_pre_hook(
        see, with_kwargs=True
    )
    try:
        with torch.no_grad():
            loaded.forward(inputs)
    finally:
        handle.remove()
    return seen[0]


def captured(loaded: LoadedModel, inputs: Inputs, name: str) -> list[torch.Tensor]:
    """Rows of each sample at one point."""
    with Capturer(loaded, loaded.select([name])) as capture:
        block = capture(inputs)[name]
    return [block.x[i][block.mask[i]] for i in range(len(inputs))]


def test_enough_families_are_installed() -> None:
    expected = 13 if hasattr(made.hf, "Qwen3VLForConditionalGeneration") else 8  # transformers 4.50 has fewer
    assert sum(family.installed() for family in made.FAMILIES.values()) >= expected


@pytest.mark.parametrize("fault", [AttributeError("no attribute 'embd'"), NotImplementedError()])
def test_why_the_embeddings_are_not_known_is_kept(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> torch.nn.Module:
        raise fault

    model = small("qwen2_vl")[0].model
    monkeypatch.setattr(model, "get_input_embeddings", broken)
    with pytest.raises(EngineError, match="does not say which module embeds its tokens") as caught:
        _input_embeddings(model)
    assert caught.value.__cause__ is fault


@pytest.mark.parametrize("name", [name for name in NAMES if made.FAMILIES[name].rows])
def test_adapter_rows_are_what_the_decoder_reads_at_the_placeholders(name: str) -> None:
    loaded, inputs = small(name)
    rows = captured(loaded, inputs, "adapter_output")
    assert [len(row) for row in rows] == inputs.media_counts
    assert (loaded.points["adapter_output"].token is None) is made.FAMILIES[name].adapter
    first = fed(loaded, inputs)
    for i, row in enumerate(rows):
        read = first[i][inputs.modality[i] > 1]
        scale = (read.norm() / row.norm()).item()  # Gemma multiplies all its embeddings by sqrt(d)
        assert scale == pytest.approx(1, rel=1e-5) or scale == pytest.approx(made.WIDTH**0.5, rel=1e-5)
        torch.testing.assert_close(row * scale, read, rtol=1e-4, atol=1e-5)
        assert row.std(dim=0).max() > 1e-3, "equal rows would prove nothing"


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_are_transformers_own(name: str) -> None:
    loaded, inputs = small(name)
    if name == "qwen3_vl" and int(made.hf.__version__.split(".")[0]) < 5:
        pytest.skip(OLD_DEEPSTACK)
    with torch.no_grad():
        theirs = loaded.forward(inputs, output_hidden_states=True).hidden_states
    with Capturer(loaded, loaded.select(["llm_*"])) as capture:
        ours = capture(inputs)
    assert len(theirs) == 4
    for k, expected in enumerate(theirs):
        torch.testing.assert_close(ours[f"llm_hidden_{k}"].x, expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours["llm_final"].x, theirs[-1], rtol=1e-4, atol=2e-5)


ENCODER_ROWS = {
    "llava_next": [48, 80],
    "llava_onevision": [48, 80],
    "qwen2_vl": [16, 32],
    "qwen2_5_vl": [64, 48],
    "qwen3_vl": [16, 32],
    "internvl": [4, 8],
    "gemma3": [16, 16],
    "paligemma": [16, 16],
    "idefics3": [16, 32],
    "smolvlm": [16, 32],
    "mistral3": [16, 8],
    "aya_vision": [16, 32],
    "mllama": [17, 34],
    "voxtral": [10, 20],
    "granite_speech": [30, 15],
    "audio_flamingo": [20, 10],
}


@pytest.mark.parametrize("name", ENCODER_ROWS)
def test_encoder_rows_leave_padding_out(name: str) -> None:
    loaded, inputs = small(name)
    rows = captured(loaded, inputs, "encoder_output")
    assert [len(row) for row in rows] == ENCODER_ROWS[name]
    assert all(torch.isfinite(row).all() and row.std() > 1e-3 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_replay_of_stored_rows_is_the_whole_forward(name: str) -> None:
    loaded, inputs = small(name)
    entry = loaded.replay
    assert (entry.unsupported is None) is made.FAMILIES[name].replays
    rows = torch.cat(captured(loaded, inputs, "adapter_output"))
    ids = inputs.tensors["input_ids"]
    if entry.unsupported is not None:
        with pytest.raises(EngineError, match=f"small/{name} cannot replay adapter rows: its "):
            entry.inputs_embeds(loaded, ids, rows)
        return
    positions = (inputs.attention.long().cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        decoder = loaded.model.get_submodule(entry.decoder)
        again = decoder(
            inputs_embeds=entry.inputs_embeds(loaded, ids, rows),
            attention_mask=inputs.tensors["attention_mask"],
            position_ids=positions,
        ).last_hidden_state
    for i, expected in enumerate(captured(loaded, inputs, "llm_final")):
        torch.testing.assert_close(again[i][inputs.attention[i]], expected, rtol=1e-4, atol=2e-5)
    with pytest.raises(EngineError, match=f"{len(rows) - 1} adapter rows for {len(rows)} placeholders"):
        entry.inputs_embeds(loaded, ids, rows[1:])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl", "phi4_multimodal"])
def test_an_edit_at_the_placeholders_changes_them_only(name: str) -> None:
    loaded, inputs = small(name)
    before = fed(loaded, inputs)
    with edit(loaded, "adapter_output", lambda rows: torch.zeros_like(rows)):
        after = fed(loaded, inputs)
    media = inputs.modality > 1
    assert before[media].abs().min(dim=1).values.max() > 0
    assert not after[media].any()
    assert torch.equal(before[~media], after[~media])


def test_spans_are_the_runs_of_placeholders() -> None:
    _, inputs = small("internvl")
    assert inputs.spans == [[(3, 7)], [(3, 11)]]  # <s>, a text token and the start marker come first


def test_rows_that_do_not_fit_name_the_way_out() -> None:
    loaded, inputs = small("llava_next")
    wrong = adopt(loaded.model, loaded.processor, points={"adapter_output": loaded.structure.adapter})
    with (
        pytest.raises(EngineError, match="model rearranges rows after it"),
        Capturer(wrong, wrong.select(["adapter_output"])) as capture,
    ):
        capture(inputs)
    path = f"{loaded.structure.adapter}:placeholders"
    tower = adopt(loaded.model, loaded.processor, points={"adapter_output": path})
    with pytest.raises(EngineError, match="not fed one embedding a token"):
        captured(tower, inputs, "adapter_output")


@pytest.mark.skipif(
    not hasattr(made.hf, "Qwen2_5OmniThinkerForConditionalGeneration"), reason="not in this transformers"
)
@pytest.mark.parametrize(("modality", "encoder"), [("image", "visual"), ("audio", "audio_tower")])
def test_the_encoder_of_the_wanted_modality(modality: str, encoder: str) -> None:
    hf = made.hf
    audio = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "output_dim": made.WIDTH}
    vision = {"hidden_size": 32, "depth": 2, "num_heads": 4, "out_hidden_size": made.WIDTH}
    text = {**made.TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 2, 2]}}
    config = hf.Qwen2_5OmniThinkerConfig(audio_config=audio, vision_config=vision, text_config=text)
    with torch.device("meta"):
        model = hf.Qwen2_5OmniThinkerForConditionalGeneration(config)
    parts = read_structure(model, modality)
    assert parts.encoder.endswith(encoder)
    assert parts.adapter.startswith(parts.encoder)
    assert parts.entry == parts.decoder, "both towers end in their adapter"
    assert parts.why["encoder"].endswith(f"named like {modality}")


def test_the_final_norm_is_not_any_norm_that_comes_last() -> None:
    class Decoder(torch.nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for name in names:
                part = torch.nn.ModuleList() if name == "layers" else torch.nn.LayerNorm(4)
                self.add_module(name, part)

    def found(*names: str) -> str | None:
        return _final_norm(Decoder(*names), "layers")

    assert found("layers", "norm") == "norm"
    assert found("layers", "norm", "per_layer_projection_norm") == "norm"
    assert found("layers", "embedding_norm") == "embedding_norm"
    assert found("layers", "layernorm_embedding") is None
    assert found("norm", "layers") is None
