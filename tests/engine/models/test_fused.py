"""Fused layers: what is replaced, what is left alone, and that everything is put back.

The kernels need a GPU; here their host paths stand in, and every weight counts as one that a kernel serves.
"""

from __future__ import annotations

import copy
import inspect
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from modegap.engine.models import fused
from modegap.engine.models.fused import Fused, fused_layers

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
X = torch.tensor([[2, 9, 11, 12, 7], [2, 5, 8, 13, 6]])
LAYERS = 3


class Calls(dict[str, int]):
    def counting(self, name: str, call: Any) -> Any:
        def counted(*args: Any) -> Any:
            self[name] = self.get(name, 0) + 1
            return call(*args)

        return counted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Every weight that is there pays; counts what the kernels were asked for."""
    made = Calls()
    monkeypatch.setattr(
        fused, "_pays", lambda tensor: tensor.is_floating_point() and tensor.device.type != "meta"
    )
    monkeypatch.setattr(fused, "swiglu", made.counting("swiglu", fused.swiglu))
    monkeypatch.setattr(fused, "rotary", made.counting("rotary", fused.rotary))
    yield made
    assert not fused._replaced


def model_of(kind: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    made = getattr(hf, f"{kind}Config")(**{**tiny.TEXT, "num_key_value_heads": 2, **config})
    return getattr(hf, f"{kind}ForCausalLM")(made).eval()


def logits(model: Any) -> torch.Tensor:
    return model(X).logits


def namespace_of(model: Any) -> dict[str, Any]:
    attention = next(m for n, m in model.named_modules() if n.endswith("self_attn"))
    return inspect.unwrap(type(attention).forward).__globals__


def untouched(model: nn.Module) -> bool:
    return not any({"forward", "_old_forward"} & module.__dict__.keys() for module in model.modules())


def test_a_host_model_in_fp32_gains_nothing() -> None:
    model = model_of("Llama")
    with fused_layers(model) as found:
        assert found == Fused(0, 0, 0)
        assert untouched(model)


@pytest.mark.parametrize(
    ("kind", "config", "norms"),
    [
        ("Llama", {}, 2 * LAYERS + 1),
        ("Mistral", {}, 2 * LAYERS + 1),
        ("Qwen3", {"head_dim": 12}, 4 * LAYERS + 1),
        ("Phi3", {"pad_token_id": 0}, 2 * LAYERS + 1),
    ],
)
@torch.no_grad()
def test_layers_are_replaced_and_put_back(
    kind: str, config: dict[str, Any], norms: int, calls: Calls
) -> None:
    model = model_of(kind, **config)
    before, function = logits(model), namespace_of(model)["apply_rotary_pos_emb"]
    with fused_layers(model) as found:
        assert found == Fused(norms, LAYERS, 1)
        calls.clear()
        inside = logits(model)
        assert calls == {"swiglu": LAYERS, "rotary": LAYERS}
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-5)
    assert untouched(model)
    assert namespace_of(model)["apply_rotary_pos_emb"] is function
    calls.clear()
    assert torch.equal(logits(model), before)
    assert not calls


@torch.no_grad()
def test_norms_of_another_formula_are_left_alone(calls: Calls) -> None:
    model: Any = model_of("Llama")
    norm = model.model.norm

    class OddRMSNorm(type(norm)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x * self.weight * 1e-3

    norm.__class__ = OddRMSNorm
    with fused_layers(model) as found:
        assert found.norms == 2 * LAYERS
        assert "forward" not in norm.__dict__
    with fused_layers(model_of("Gemma", head_dim=12)) as found:
        assert (found.norms, found.mlps) == (0, 0)  # 1 + weight, and a gate of tanh-GELU
        assert found.rotary == 1


def test_mlps_of_another_formula_are_left_alone(calls: Calls) -> None:
    model: Any = model_of("Llama")
    kind = type(model.model.layers[0].mlp)

    class Clamped(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7.0)) * self.up_proj(x))

    class Scaled(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.factor

    class Two(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * routing

    layers = model.model.layers
    for replaced in (Clamped, Two):
        layers[1].mlp.__class__ = replaced
        with fused_layers(model) as found:
            assert found.mlps == LAYERS - 1
    layers[1].mlp.__class__ = layers[2].mlp.__class__ = Scaled
    layers[1].mlp.factor, layers[2].mlp.factor = 1.0, 0.5  # told apart though the class is one
    with fused_layers(model) as found:
        assert found.mlps == LAYERS - 1
        assert "forward" in layers[1].mlp.__dict__
    layers[0].mlp.dropout = nn.Dropout(0.1)
    with fused_layers(model) as found:
        assert found.mlps == LAYERS - 2
    layers[1].mlp.forward = lambda x: x  # the user's own
    with fused_layers(model) as found:
        assert found.mlps == LAYERS - 3
    assert layers[1].mlp.forward(3) == 3


@torch.no_grad()
def test_another_rotary_function_is_left_alone(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Llama")
    namespace = namespace_of(model)
    original = namespace["apply_rotary_pos_emb"]

    def interleaved(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        return original(q.flip(-1), k.flip(-1), cos, sin)

    for other in (interleaved, lambda x, cos, sin: x, lambda q, k, cos, sin: None):
        monkeypatch.setitem(namespace, "apply_rotary_pos_emb", other)
        with fused_layers(model) as found:
            assert found.rotary == 0
            assert namespace["apply_rotary_pos_emb"] is other


@torch.no_grad()
def test_calls_that_the_kernel_does_not_serve_go_to_the_models_function(calls: Calls) -> None:
    model = model_of("Llama")
    namespace = namespace_of(model)
    original = namespace["apply_rotary_pos_emb"]
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    angle = torch.randn(2, 5, 8)
    with fused_layers(model):
        ours = namespace["apply_rotary_pos_emb"]
        assert ours is not original
        calls.clear()
        for args, kwargs in [
            ((q, k, angle, angle), {"unsqueeze_dim": 2}),
            ((q.transpose(1, 2), k.transpose(1, 2), angle, angle, 1), {}),
            ((q[0].transpose(0, 1), k[0].transpose(0, 1), angle[0], angle[0]), {"unsqueeze_dim": 0}),
            ((q.transpose(1, 2), k.transpose(1, 2), angle.double(), angle.double()), {}),
        ]:
            for x, y in zip(ours(*args, **kwargs), original(*args, **kwargs), strict=True):
                assert torch.equal(x, y)
        with torch.enable_grad():
            learnt = angle.clone().requires_grad_()
            sum(x.sum() for x in ours(q.transpose(1, 2), k.transpose(1, 2), learnt, angle)).backward()
            assert learnt.grad is not None
        assert not calls


@torch.no_grad()
def test_heads_of_which_a_part_is_turned(calls: Calls) -> None:
    turning = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    model = model_of("Phi3", pad_token_id=0, rope_parameters=turning, partial_rotary_factor=0.5)
    before = logits(model)
    with fused_layers(model) as found:
        assert found.rotary == 1  # the function is the plain formula where it turns whole heads
        calls.clear()
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
        assert "rotary" not in calls


@torch.no_grad()
def test_hooks_stay_in_force(calls: Calls) -> None:
    model: Any = model_of("Llama")
    seen: list[str] = []
    mlp = model.model.layers[0].mlp
    with fused_layers(model):
        calls.clear()
        handles = [
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
            for name, module in (
                ("norm", model.model.norm),
                ("mlp", mlp),
                ("gate", mlp.gate_proj),
                ("act", mlp.act_fn),
            )
        ]
        before = logits(model)
        assert sorted(seen) == sorted(["norm", "mlp", "gate", "act"])
        assert calls["swiglu"] == LAYERS - 1  # an activation that is watched is called
        handles.pop().remove()
        assert torch.allclose(logits(model), before, atol=1e-6)
        assert calls["swiglu"] == 2 * LAYERS - 1
        handles.append(mlp.register_forward_hook(lambda *args: args[-1] * 0))
        assert not torch.allclose(logits(model), before)
    for handle in handles:
        handle.remove()
    seen.clear()
    mlp.gate_proj.register_forward_hook(lambda *_: seen.append("gate"))
    with fused_layers(model) as found:
        assert found.mlps == LAYERS
    assert not seen  # checking a module does not run what hangs on it


@torch.no_grad()
def test_accelerates_hooks_stay_in_force(calls: Calls) -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model: Any = model_of("Llama")
    before = logits(model)
    seen: list[nn.Module] = []

    class Seeing(hooks.ModelHook):  # type: ignore[name-defined, misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(module)
            return args, kwargs

    layer = model.model.layers[0]
    for module in (layer.mlp, layer.input_layernorm):
        hooks.add_hook_to_module(module, Seeing())
    with fused_layers(model) as found:
        assert found == Fused(2 * LAYERS + 1, LAYERS, 1)
        calls.clear()
        inside = logits(model)
        assert calls["swiglu"] == LAYERS
        hooks.remove_hook_from_module(layer.input_layernorm)
        hooks.add_hook_to_module(layer.post_attention_layernorm, Seeing())
    torch.testing.assert_close(inside, before, rtol=1e-4, atol=1e-5)
    assert seen == [layer.input_layernorm, layer.mlp]
    calls.clear()
    assert torch.equal(logits(model), before)
    assert not calls
    assert seen[2:] == [layer.post_attention_layernorm, layer.mlp]


@torch.no_grad()
def test_an_exception_puts_everything_back(calls: Calls) -> None:
    model: Any = model_of("Llama")
    function = namespace_of(model)["apply_rotary_pos_emb"]
    with pytest.raises(KeyError), fused_layers(model):
        raise KeyError
    assert untouched(model)
    assert namespace_of(model)["apply_rotary_pos_emb"] is function
    with fused_layers(model):
        namespace_of(model)["apply_rotary_pos_emb"] = print
    assert namespace_of(model)["apply_rotary_pos_emb"] is print  # what the user put there meanwhile
    namespace_of(model)["apply_rotary_pos_emb"] = function


@torch.no_grad()
def test_blocks_nest(calls: Calls) -> None:
    model: Any = model_of("Llama")
    with fused_layers(model), fused_layers(model) as inner:
        assert inner == Fused(0, 0, 1)
        logits(model)
    assert untouched(model)


@torch.no_grad()
def test_the_rotary_function_stays_until_the_last_thread_has_left(calls: Calls) -> None:
    models = [model_of("Llama"), model_of("Llama")]
    namespace = namespace_of(models[0])
    function = namespace["apply_rotary_pos_emb"]
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with fused_layers(models[1]):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=other)
    with fused_layers(models[0]):
        thread.start()
        assert inside.wait(20)
    assert namespace["apply_rotary_pos_emb"] is not function
    leave.set()
    thread.join()
    assert namespace["apply_rotary_pos_emb"] is function


@torch.no_grad()
def test_autocast_is_respected(calls: Calls) -> None:
    model: Any = model_of("Llama").bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = logits(model)
        with fused_layers(model) as found:
            assert found == Fused(2 * LAYERS + 1, LAYERS, 1)
            kinds: set[torch.dtype] = set()
            model.model.layers[1].register_forward_hook(lambda *args: kinds.add(args[-1].dtype))
            inside = logits(model)
    assert kinds == {torch.bfloat16}
    assert inside.dtype == before.dtype
    assert float((inside - before).norm() / before.norm()) < 0.05


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_adapters_inside_of_fused_layers(checkpointing: bool, calls: Calls) -> None:
    peft = pytest.importorskip("peft")
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(
        model_of("Llama"), peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    )
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(weights) == 2 * len(names) * LAYERS

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(logits(model).logsumexp(-1).sum(), weights)

    before = gradients()
    with fused_layers(model) as found:
        assert found == Fused(2 * LAYERS + 1, LAYERS, 1)
        calls.clear()
        inside = gradients()
        assert calls["swiglu"] == calls["rotary"] == LAYERS * (1 + checkpointing)
    for ours, theirs in zip(inside, before, strict=True):
        assert float(theirs.norm()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Llama", "Phi3"])
def test_on_a_gpu_fused_layers_are_as_near_to_the_truth_as_the_models_own(
    kind: str, dtype: torch.dtype
) -> None:
    from modegap.kernels import last_path

    model: Any = model_of(kind, pad_token_id=0).to(dtype).cuda()

    def run(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        embeds = embedded.to(next(model.parameters()).dtype).requires_grad_()
        out = model(inputs_embeds=embeds).logits
        (g,) = torch.autograd.grad(out.double().log_softmax(-1)[..., 3].sum(), embeds)
        return out.detach().double(), g.double()

    embedded = torch.randn(2, 33, tiny.TEXT["hidden_size"], device="cuda")
    exact = run(copy.deepcopy(model).double())
    own = run(model)
    with fused_layers(model) as found:
        assert found == Fused(2 * LAYERS + 1, LAYERS, 1)
        ours = run(model)
        assert {last_path(name).name for name in ("swiglu", "rotary")} == {"triton"}
    assert not torch.equal(ours[0], own[0])
    for truth, theirs, mine in zip(exact, own, ours, strict=True):
        assert float((mine - truth).norm()) <= 1.5 * float((theirs - truth).norm())
