"""Adapters go into the decoder only, leave no trace, and are saved as peft saves them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from modegap.engine.errors import EngineError
from modegap.engine.lora import LoraSpec, adapted, check_modules, fresh
from modegap.engine.models import adopt
from modegap.engine.replay import Replay

here = Path(__file__)
made = SimpleNamespace(**runpy.run_path(str(here.with_name("lora_material.py"))))


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded, store = made.captured(tmp_path_factory.mktemp("stores"), request.param, 6)
    return loaded, made.question_source(loaded, store)


def losses(case: Any) -> Any:
    loaded, source = case
    return Replay(loaded, source).losses()[0]


def test_a_new_adapter_changes_nothing_and_goes_without_a_trace(case: Any) -> None:
    loaded, _ = case
    before = losses(case)
    state = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    kinds = {name: type(module) for name, module in loaded.model.named_modules()}
    asking = [weight.requires_grad for weight in loaded.model.parameters()]
    random = torch.get_rng_state()
    with fresh(loaded, LoraSpec(rank=4), seed=1) as adapter:
        assert (losses(case) == before).all()
        assert all(weight.requires_grad for weight in adapter.parameters.values())
        assert sum(weight.requires_grad for weight in loaded.model.parameters()) == len(adapter.parameters)
    assert torch.equal(torch.get_rng_state(), random)
    assert {name: type(module) for name, module in loaded.model.named_modules()} == kinds
    after = loaded.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert [weight.requires_grad for weight in loaded.model.parameters()] == asking
    assert not hasattr(loaded.model, "peft_config")


def test_the_encoder_gets_no_adapter(case: Any) -> None:
    loaded, _ = case
    root = loaded.structure.encoder
    inside = {path.rpartition(".")[2] for path, _ in loaded.model.get_submodule(root).named_modules()}
    assert {"q_proj", "k_proj", "v_proj"} <= inside  # names alone would hit it
    layers = loaded.structure.n_layers
    with fresh(loaded, LoraSpec(), seed=0) as adapter:
        assert len(adapter.parameters) == 2 * 4 * layers
        assert all(f".{loaded.structure.layers}." in name for name in adapter.parameters)


def test_it_loads_with_plain_peft(case: Any, tmp_path: Path) -> None:
    loaded, _ = case
    before = losses(case)
    with fresh(loaded, LoraSpec(rank=4), seed=1) as adapter:
        with torch.no_grad():
            for name, weight in adapter.parameters.items():
                weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
        changed = losses(case)
        adapter.save(tmp_path / "adapter")
        state = adapter.state()
    assert abs(changed - before).max() > 1e-2
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]
    peft = PeftModel.from_pretrained(loaded.model, str(tmp_path / "adapter"))
    try:
        assert (losses(case) == changed).all()
    finally:
        peft.unload()
        vars(loaded.model).pop("peft_config", None)
    with adapted(loaded, tmp_path / "adapter") as again:
        assert (losses(case) == changed).all()
        assert all(torch.equal(tensor, state[name]) for name, tensor in again.state().items())
        assert not any(weight.requires_grad for weight in again.parameters.values())
    assert (losses(case) == before).all()


def test_mistakes_are_named(case: Any, tmp_path: Path) -> None:
    loaded, _ = case
    with pytest.raises(
        EngineError, match=r"no linear layer 'q_prj'; did you mean 'q_proj'\?; it has .*down_proj"
    ):
        check_modules(loaded, LoraSpec(modules=("q_prj",)))
    with pytest.raises(EngineError, match="no linear layer 'out_proj'"):  # the encoder's
        check_modules(loaded, LoraSpec(modules=("out_proj",)))
    with pytest.raises(EngineError, match="no peft adapter"), adapted(loaded, tmp_path):
        pass
    with fresh(loaded, LoraSpec(rank=2), seed=0) as adapter:
        adapter.save(tmp_path / "a")
        state = adapter.state()
        wrapped = adopt(adapter.model, loaded.processor, name="wrapped")
        with pytest.raises(EngineError, match="merge it first"):
            check_modules(wrapped, LoraSpec())
    with fresh(loaded, LoraSpec(rank=2, modules=("down_proj",)), seed=0) as adapter:
        adapter.save(tmp_path / "b")
    kinds = [type(module) for module in loaded.model.modules()]
    config = tmp_path / "b" / "adapter_config.json"
    for wrong in (
        {**json.loads(config.read_text()), "target_modules": "nothing"},
        {**json.loads(config.read_text()), "r": 3},
        {**json.loads(config.read_text()), "target_modules": ["up_proj"]},
    ):
        config.write_text(json.dumps(wrong))
        with pytest.raises(EngineError, match="does not fit tiny/"), adapted(loaded, tmp_path / "b"):
            pass
    assert [type(module) for module in loaded.model.modules()] == kinds
    with fresh(loaded, LoraSpec(rank=3), seed=0) as other, pytest.raises(EngineError, match="another LoRA"):
        other.load(state)
    gpt2 = made.tiny.text("gpt2")
    with pytest.raises(EngineError, match="q_proj"):
        check_modules(gpt2, LoraSpec())
    with fresh(gpt2, LoraSpec(modules=("c_attn",)), seed=0) as adapter:
        assert adapter.parameters
