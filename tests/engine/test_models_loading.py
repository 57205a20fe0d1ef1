"""`load` and `adopt`, and what they say when there is nothing to load."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from modegap.engine.capture import Capturer
from modegap.engine.errors import EngineError
from modegap.engine.models import adopt, load
from modegap.engine.models.remedies import remedy

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("family", ["llava", "audio", "llama", "gpt2"])
def test_a_saved_model_loads_the_same(family: str, tmp_path: Path) -> None:
    make, samples = tiny.FAMILIES[family]
    made = make()
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="float32")
    assert (loaded.family, loaded.modality, loaded.name) == (made.family, made.modality, str(tmp_path))
    assert loaded.hidden_size == 48
    assert not loaded.model.training
    batch = samples(3)
    blocks = []
    for each in (made, loaded):
        with Capturer(each, each.select(["llm_final"])) as capture:
            blocks.append(capture(each.collate(batch))["llm_final"].x)
    before, after = made.model.state_dict(), loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], weight.to(after[name].dtype)) for name, weight in before.items())
    # bit-identical weights; the products of two models may still round differently on some builds of torch
    torch.testing.assert_close(*blocks, rtol=1e-5, atol=1e-6)
    assert load(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16


def test_a_loaded_model_unpacks_into_itself_and_the_processor() -> None:
    loaded = tiny.llava()
    model, processor = loaded
    assert model is loaded
    assert processor is loaded.processor


def test_options_reach_from_pretrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = tiny.text()
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    seen: dict[str, Any] = {}
    original = hf.LlamaForCausalLM.from_pretrained.__func__

    def spy(cls: Any, name: str, **options: Any) -> Any:
        seen.update(options)
        return original(cls, name, **{key: v for key, v in options.items() if key != "device_map"})

    monkeypatch.setattr(hf.LlamaForCausalLM, "from_pretrained", classmethod(spy))
    load(tmp_path, dtype=torch.float32, device_map="auto", revision="abc", attn_implementation="eager")
    assert seen["device_map"] == "auto"
    assert seen["revision"] == "abc"
    assert seen["trust_remote_code"] is False
    assert seen["attn_implementation"] == "eager"
    assert seen.get("dtype", seen.get("torch_dtype")) == torch.float32


def test_unreachable_ids_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        load("no-such-org/no-such-model")
    message = str(caught.value)
    assert "\n" not in message
    assert "no-such-org/no-such-model" in message
    assert "hf download" in message
    with pytest.raises(EngineError, match=r"no model folder .*config\.json"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="got dtype 'float17'"):
        load(tmp_path, dtype="float17")
    with pytest.raises(EngineError) as empty:
        load(tmp_path)
    assert "\n" not in str(empty.value)


class GatedRepoError(OSError): ...


class RepositoryNotFoundError(OSError): ...


class RemoteEntryNotFoundError(OSError): ...


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("You are trying to access a gated repo.\nMake sure to have access"), "accept its licence"),
        (GatedRepoError("403"), "hf auth login"),
        (RepositoryNotFoundError("404"), "check the spelling"),
        (
            RemoteEntryNotFoundError("404: no config.json"),
            "lacks a file of its published layout",
        ),
        (ImportError("requires the sentencepiece library"), "pip install sentencepiece protobuf"),
        (
            OSError("org/x is not a local folder and is not a valid model identifier\nlisted on"),
            "check the spelling",
        ),
        (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), "cannot reach"),
        (OSError("main2 is not a valid git identifier (branch name)"), "no revision 'main2'"),
        (
            ValueError("set the option `trust_remote_code=True` to remove this error"),
            "pass trust_remote_code=True",
        ),
        (
            ImportError("Using `low_cpu_mem_usage=True` or a `device_map` requires `accelerate`"),
            "pip install accelerate",
        ),
        (
            ValueError("type `new` but Transformers does not recognize this architecture"),
            "upgrade transformers",
        ),
        (ValueError("first line\nsecond line"), "cannot load org/x: first line"),
    ],
)
def test_remedies_are_one_line(error: Exception, expected: str) -> None:
    wrapped = OSError("could not load")
    wrapped.__cause__ = error
    for each in (error, wrapped) if "first line" not in expected else (error,):
        message = remedy(each, "org/x", "main2")
        assert expected in message
        assert "\n" not in message


def test_adopt_changes_nothing() -> None:
    made = tiny.text()
    made.model.train()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    loaded = adopt(made.model, made.processor)
    assert made.model.training
    with Capturer(loaded, loaded.select(["llm_final"])) as capture:
        assert not made.model.training
        capture(loaded.collate(tiny.text_samples(2)))
    assert all(module.training for module in made.model.modules())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())


def test_a_peft_wrapper_captures_like_its_model() -> None:
    peft = pytest.importorskip("peft")
    made = tiny.text("gpt2")
    inputs = made.collate(tiny.text_samples(4))
    with Capturer(made, made.select(["llm_final"])) as capture:
        expected = capture(inputs)["llm_final"].x
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=True)
    wrapped = adopt(peft.get_peft_model(made.model, lora).eval(), made.processor)
    again = wrapped.collate(tiny.text_samples(4))
    assert "position_ids" in again.tensors
    with Capturer(wrapped, wrapped.select(["llm_final"])) as capture:
        assert torch.equal(capture(again)["llm_final"].x, expected)
