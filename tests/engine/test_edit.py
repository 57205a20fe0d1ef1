"""`edit` and `target_nll` against loops written out by hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.datasets import ListDataset, Sample
from modegap.engine.errors import EngineError
from modegap.engine.models import edit, target_nll

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_hand(loaded, samples) -> np.ndarray:
    """One sample at a time, all logits, Python loop over the target tokens."""
    found = []
    for sample in samples:
        inputs = loaded.collate([sample], target=True)
        with torch.no_grad():
            logits = loaded.model(**inputs.tensors).logits[0].double()
        ids = inputs.tensors["input_ids"][0]
        targets = inputs.target_mask[0].nonzero().flatten().tolist()
        losses = [float(torch.logsumexp(logits[t - 1], 0) - logits[t - 1, ids[t]]) for t in targets]
        found.append(np.mean(losses))
    return np.array(found)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_target_nll_is_the_loop(family: str, side: str) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded = make(side)
    batch = samples(7)
    found = target_nll(loaded, batch, batch_size=3)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, by_hand(loaded, batch), rtol=2e-5)
    assert np.ptp(found) > 0.1


def test_the_head_runs_on_the_targets_only() -> None:
    loaded = tiny.llava()
    seen = []
    handle = loaded.model.get_output_embeddings().register_forward_hook(
        lambda m, args, out: seen.append(out.shape)
    )
    samples = tiny.image_samples(4)
    target_nll(loaded, samples, batch_size=4)
    handle.remove()
    words = sum(len(sample.text.split()) for sample in samples)
    assert seen == [(1, words, tiny.TEXT["vocab_size"])]


@pytest.mark.parametrize(
    "point", ["encoder_output", "adapter_output", "llm_hidden_0", "llm_hidden_1", "llm_final"]
)
def test_edit_replaces_the_tensor(point: str) -> None:
    loaded = tiny.llava()
    samples = tiny.image_samples(5)
    plain = target_nll(loaded, samples, batch_size=2)
    count = hooks(loaded.model)

    def halve(x: torch.Tensor) -> torch.Tensor:
        return x * 0.5

    inside = target_nll(loaded, samples, batch_size=2, edit=(point, halve))
    with edit(loaded, point, halve):
        outside = target_nll(loaded, samples, batch_size=3)
        expected = by_hand(loaded, samples)
    np.testing.assert_allclose(inside, expected, rtol=2e-5)
    np.testing.assert_allclose(outside, expected, rtol=2e-5)
    assert np.abs(inside - plain).max() > 1e-3
    np.testing.assert_array_equal(target_nll(loaded, samples, batch_size=2), plain)
    assert hooks(loaded.model) == count


def test_editing_the_adapter_is_editing_its_weights() -> None:
    loaded = tiny.llava()
    samples = tiny.image_samples(3)
    edited = target_nll(loaded, samples, edit=("adapter_output", lambda x: 2 * x))
    with torch.no_grad():
        last = loaded.model.get_submodule(loaded.structure.adapter).linear_2
        last.weight.mul_(2)
        last.bias.mul_(2)
    np.testing.assert_allclose(edited, target_nll(loaded, samples), rtol=1e-6)


def test_gradients_flow_through_an_edit() -> None:
    loaded = tiny.llava()
    shift = torch.zeros(48, requires_grad=True)
    inputs = loaded.collate(tiny.image_samples(2), target=True)
    with edit(loaded, "adapter_output", lambda x: x + shift):
        loaded.model(**inputs.tensors).logits.logsumexp(-1).mean().backward()
    assert shift.grad is not None
    assert float(shift.grad.abs().sum()) > 0


def test_hooks_go_after_errors_and_users_hooks_stay() -> None:
    loaded = tiny.llava()
    users = loaded.model.get_output_embeddings().register_forward_hook(lambda *args: None)
    inputs = loaded.collate(tiny.image_samples(1))
    loaded.model(**inputs.tensors)  # transformers installs hooks of its own in the first forward
    count = hooks(loaded.model)
    with (
        pytest.raises(EngineError, match="keep the shape"),
        edit(loaded, "adapter_output", lambda x: x[:, :3]),
    ):
        loaded.model(**inputs.tensors)
    with pytest.raises(EngineError, match="no hook point 'nothing'"), edit(loaded, "nothing", lambda x: x):
        pass
    with pytest.raises(EngineError, match="keep the shape"):
        target_nll(loaded, tiny.image_samples(1), edit=("llm_final", lambda x: x[:1, :1]))
    assert hooks(loaded.model) == count
    users.remove()


def test_target_nll_takes_data_sets_and_restores_the_mode() -> None:
    loaded = tiny.text()
    loaded.model.train()
    data = ListDataset(tiny.text_samples(5))
    found = target_nll(loaded, data, batch_size=2)
    assert found.shape == (5,)
    assert loaded.model.training
    with pytest.raises(EngineError, match="sample 'e' has no target tokens"):
        target_nll(loaded, [Sample("e", "")])
    with pytest.raises(ValueError, match="batch_size 0"):
        target_nll(loaded, data, batch_size=0)


def test_target_nll_halves_batches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny.text()
    samples = tiny.text_samples(9)
    whole = target_nll(loaded, samples, batch_size=8)
    sizes = []
    forward = loaded.model.forward

    def small(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    small.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(loaded.model, "forward", small)
    np.testing.assert_allclose(target_nll(loaded, samples, batch_size=8), whole, rtol=2e-5)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
