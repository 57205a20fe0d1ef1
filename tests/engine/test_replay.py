"""Replay gives what the whole model gives, one sample at a time, encoder and all."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modegap.engine.capture import ExtractConfig, extract
from modegap.engine.datasets import ListDataset, Sample, as_text
from modegap.engine.errors import EngineError
from modegap.engine.models import LoadedModel, target_nll
from modegap.engine.replay import Replay, cross_scores, open_source
from modegap.engine.replay import decoder as decoder_module
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))
N = 6


def captured(
    path: Path, family: str, points: tuple[str, ...] = ("adapter_output",), **more: Any
) -> tuple[LoadedModel, list[Sample], ActivationStore]:
    make, samples = tiny.FAMILIES[family]
    loaded, batch = make(), samples(N)
    options = {"batch_size": 4, "store_dtype": "float32", "rows": "tokens", **more}
    config = ExtractConfig("given", "given", str(path / f"{family}.zarr"), points, **options)
    return loaded, batch, extract(config, model=loaded, data=ListDataset(batch))


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, list[Sample], ActivationStore]:
    return captured(tmp_path_factory.mktemp("stores"), request.param)


def whole(loaded: LoadedModel, sample: Sample, target: bool, fn: Any = None) -> tuple[Any, Any, Any, Any]:
    """(z, log q of every scored token, logits there, gradient) by the original model, batch 1, media and all."""
    inputs = loaded.collate([sample], target=target)
    module = loaded.model.get_submodule(loaded.structure.adapter)
    kept: dict[str, torch.Tensor] = {}

    def leaf(_: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        kept["z"] = out.detach().clone().requires_grad_(True)
        return kept["z"] if fn is None else fn(kept["z"])

    handle = module.register_forward_hook(leaf)
    try:
        logits = loaded.model(**inputs.tensors).logits
    finally:
        handle.remove()
    labels = inputs.tensors["input_ids"]
    mask = inputs.target_mask[:, 1:] if target else inputs.attention[:, 1:] & inputs.attention[:, :-1]
    before = logits[:, :-1][mask]
    log_q = torch.log_softmax(before.float(), -1).gather(-1, labels[:, 1:][mask][:, None])[:, 0]
    (g,) = torch.autograd.grad(log_q.mean(), kept["z"])
    count = inputs.media_counts[0]
    return kept["z"].detach()[0, :count], log_q.detach(), before.detach(), g[0, :count]


@pytest.mark.parametrize("target", ["answer", "paper"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_loss_and_gradient_are_those_of_the_whole_model(case: Any, target: str, batch_size: int) -> None:
    loaded, samples, store = case
    source = open_source(loaded, store, target=target)
    asking = [weight.requires_grad for weight in loaded.model.parameters()]
    assert source.ids == tuple(sample.id for sample in samples)
    replay = Replay(loaded, source, batch_size=batch_size)
    losses = replay.losses()
    assert losses.shape == (1, N)
    seen = {}
    for members, batch in replay.gradients(lambda batch: batch):
        for b, number in enumerate(members):
            seen[number] = batch.g[batch.cu_seqlens[b] : batch.cu_seqlens[b + 1]], float(batch.log_q[b])
    assert sorted(seen) == list(range(N))
    for number, sample in enumerate(samples):
        z, log_q, _, g = whole(loaded, sample, target == "answer")
        np.testing.assert_allclose(replay.rows(number), z, rtol=1e-4, atol=1e-5)
        assert losses[0, number] == pytest.approx(-float(log_q.mean()), rel=2e-5)
        assert seen[number][1] == pytest.approx(float(log_q.mean()), rel=2e-5)
        scale = float(g.abs().max())
        np.testing.assert_allclose(seen[number][0], g, rtol=1e-3, atol=2e-4 * scale)
    assert [weight.requires_grad for weight in loaded.model.parameters()] == asking


def test_answers_are_scored_as_target_nll_scores_them(case: Any) -> None:
    loaded, samples, store = case
    found = Replay(loaded, open_source(loaded, store), batch_size=3).losses()[0]
    np.testing.assert_allclose(found, target_nll(loaded, samples, batch_size=1), rtol=2e-5)


def test_edits_are_those_of_the_whole_model(case: Any) -> None:
    loaded, samples, store = case
    u = torch.linalg.qr(torch.randn(48, 3, generator=torch.Generator().manual_seed(0)))[0]
    remove = lambda z: z - (z @ u) @ u.T  # noqa: E731
    replay = Replay(loaded, open_source(loaded, store), batch_size=5)
    edits = [lambda z, owner: remove(z), lambda z, owner: z + 0.1 * owner[:, None]]
    losses = replay.losses([None, *edits])
    both, kl = replay.compare(edits)
    np.testing.assert_allclose(both, losses, rtol=1e-5)
    for number, sample in enumerate(samples):
        _, _, base_logits, _ = whole(loaded, sample, True)
        shift = 0.1 * number
        for c, fn in enumerate([remove, lambda z: z + shift]):  # noqa: B023
            _, log_q, logits, _ = whole(loaded, sample, True, fn)
            assert losses[c + 1, number] == pytest.approx(-float(log_q.mean()), rel=2e-5)
            p, q = torch.log_softmax(base_logits, -1), torch.log_softmax(logits, -1)
            expected = float((p.exp() * (p - q)).sum(-1).mean())
            assert kl[c, number] == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert losses[0] == pytest.approx(
        -np.array([float(whole(loaded, s, True)[1].mean()) for s in samples]), rel=2e-5
    )


def test_edits_inside_the_decoder_are_those_of_the_whole_model(case: Any) -> None:
    loaded, samples, store = case
    half = lambda x: x * 0.5  # noqa: E731
    found = Replay(loaded, open_source(loaded, store), batch_size=4).losses_inside(
        "llm_hidden_1", [None, half]
    )
    for row, fn in zip(found, [None, ("llm_hidden_1", half)], strict=True):
        np.testing.assert_allclose(row, target_nll(loaded, samples, batch_size=1, edit=fn), rtol=2e-5)


def test_a_shared_beginning_changes_nothing(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _, store = case
    prompt = f"a b c d e f g h {loaded.collator.style.placeholder} Describe this ."
    source = open_source(loaded, store, prompt=prompt)
    edits = [None, lambda z, owner: z * 0.5]
    plain = Replay(loaded, source, batch_size=4, share=False).losses(edits)
    calls = []
    prefill = decoder_module.Decoder.prefill
    monkeypatch.setattr(
        decoder_module.Decoder, "prefill", lambda self, x: calls.append(x.shape) or prefill(self, x)
    )
    for limit, expected in ((16, 0), (4, 1)):
        monkeypatch.setattr(decoder_module, "MIN_SHARED", limit)
        shared = Replay(loaded, source, batch_size=4).losses(edits)
        assert len(calls) == expected
        np.testing.assert_allclose(shared, plain, rtol=2e-5)
    assert calls[0][0] == 1  # once, whatever the batch
    assert calls[0][1] >= 8


def test_every_answer_under_every_sample(case: Any) -> None:
    loaded, samples, store = case
    source = open_source(loaded, store)
    answers = [item.tokens[item.target] for item in source.items]
    replay = Replay(loaded, source, batch_size=4)
    scores = np.stack(cross_scores(replay, [answers] * N))
    totals = np.stack(cross_scores(replay, [answers] * N, total=True))
    np.testing.assert_allclose(totals, scores * np.array([len(a) for a in answers]), rtol=1e-6)
    np.testing.assert_allclose(np.diag(scores), -replay.losses()[0], rtol=2e-5)
    for i, j in ((0, 1), (3, 2), (5, 4)):
        other = Sample("x", samples[j].text, samples[i].media)
        assert scores[i, j] == pytest.approx(-target_nll(loaded, [other])[0], rel=2e-5)
    ragged = cross_scores(replay, [answers[:k] for k in (1, 2, 3, 1, 2, 3)])
    for i, row in enumerate(ragged):
        np.testing.assert_allclose(row, scores[i, : len(row)], rtol=2e-5)


def test_cross_scores_without_a_shareable_cache(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _, store = case
    source = open_source(loaded, store)
    answers = [[item.tokens[item.target] for item in source.items]] * N
    shared = np.stack(cross_scores(Replay(loaded, source), answers))
    monkeypatch.setattr(decoder_module, "layers_of", lambda cache: None)
    np.testing.assert_allclose(np.stack(cross_scores(Replay(loaded, source), answers)), shared, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_text_model_replays_its_own_texts(family: str, tmp_path: Path) -> None:
    loaded, samples, store = captured(tmp_path, family, ("text_embedding",))
    source = open_source(loaded, store)
    expected = [s for s in samples if s.id in source.ids]
    found = Replay(loaded, source, batch_size=4).losses()[0]
    np.testing.assert_allclose(found, target_nll(loaded, expected, batch_size=1), rtol=2e-5)


def test_the_text_law_stands_in_the_place_of_the_media(case: Any, tmp_path: Path) -> None:
    loaded, samples, _ = case
    config = ExtractConfig(
        "given", "given", str(tmp_path / "t.zarr"), ("text_embedding",), store_dtype="float32"
    )
    store = extract(config, model=loaded, data=as_text(ListDataset(samples)))
    source = open_source(loaded, store)
    assert source.point == "text_embedding"
    found = Replay(loaded, source, batch_size=4).losses()[0]
    for number, sample in enumerate(samples):
        text = loaded.collator.collate([sample]).texts[0]
        ids = source.items[number].tokens
        np.testing.assert_array_equal(ids[source.items[number].slot], text)
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1]
        log_q = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(ids[1:])[:, None])[:, 0]
        m = len(source.items[number].target)
        assert found[number] == pytest.approx(-float(log_q[-m:].mean()), rel=2e-5)


def test_stored_token_ids_are_taken_where_an_llm_point_was_captured(tmp_path: Path) -> None:
    for target in (False, True):
        loaded, samples, store = captured(
            tmp_path / str(target), "llava", ("adapter_output", "llm_hidden_0"), target=target
        )
        found = Replay(loaded, open_source(loaded, store)).losses()[0]
        np.testing.assert_allclose(found, target_nll(loaded, samples, batch_size=1), rtol=2e-5)


def test_samples_with_their_own_prompts(tmp_path: Path) -> None:
    loaded, samples = tiny.llava(), tiny.image_samples(N)
    asked = [
        Sample(s.id, s.text, s.media, prompt=f"{'a b c d'[: 1 + 2 * (i % 4)]} .")
        for i, s in enumerate(samples)
    ]
    config = ExtractConfig(
        "given", "given", str(tmp_path / "p.zarr"), ("adapter_output",), store_dtype="float32"
    )
    store = extract(config, model=loaded, data=ListDataset(asked))
    found = Replay(loaded, open_source(loaded, store)).losses()[0]
    np.testing.assert_allclose(found, target_nll(loaded, asked, batch_size=1), rtol=2e-5)


def test_out_of_memory_halves_the_batch_and_goes_on(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _, store = case
    source = open_source(loaded, store)
    expected = Replay(loaded, source, batch_size=1).losses([None, lambda z, _: z * 0.5])
    logits = decoder_module.Decoder.logits

    def small(self: Any, packed: Any) -> torch.Tensor:
        if len(packed.embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self, packed)

    monkeypatch.setattr(decoder_module.Decoder, "logits", small)
    replay = Replay(loaded, source, batch_size=6)
    np.testing.assert_allclose(replay.losses([None, lambda z, _: z * 0.5]), expected, rtol=2e-5)
    assert [size for _, size in replay.retried] == [3, 1]
    found = [members for members, _ in replay.gradients(lambda batch: None)]
    assert sorted(number for members in found for number in members) == list(range(N))


def test_a_sample_that_never_fits_is_a_failure_of_the_gradients_only(
    case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, _, store = case
    source = open_source(loaded, store)
    bad = source.items[2]
    pack = decoder_module.Decoder.pack

    def refuse(self: Any, items: Any, z: torch.Tensor, **more: Any) -> Any:
        if bad in items:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pack(self, items, z, **more)

    monkeypatch.setattr(decoder_module.Decoder, "pack", refuse)
    replay = Replay(loaded, source, batch_size=4)
    found = [number for members, _ in replay.gradients(lambda batch: None) for number in members]
    assert sorted(found) == [0, 1, 3, 4, 5]
    assert [name for name, _ in replay.failures] == [bad.id]
    with pytest.raises(EngineError, match=f"{bad.id}.*does not fit"):
        replay.losses()


def test_fp16_gradients_do_not_underflow(tmp_path: Path) -> None:
    loaded, _, store = captured(tmp_path, "llava")
    wide = dict(Replay(loaded, open_source(loaded, store), batch_size=N).gradients(lambda b: (b.g, b.scale)))
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(1e-6)
    expected = dict(
        Replay(loaded, open_source(loaded, store), batch_size=N).gradients(lambda b: (b.g, b.scale))
    )
    loaded.model.half()
    found = dict(Replay(loaded, open_source(loaded, store), batch_size=N).gradients(lambda b: (b.g, b.scale)))
    (g, scale), (truth, one) = *found.values(), *expected.values()
    assert (scale, one) == (1024.0, 1.0)
    assert float(next(iter(wide.values()))[0].norm()) > 1e3 * float(truth.norm())
    assert float(g.float().norm() / scale) == pytest.approx(float(truth.norm()), rel=0.1)


def plain_store(path: Path, points: dict[str, PointPlan], labels: dict[str, Any]) -> ActivationStore:
    store = ActivationStore.create(path, StorePlan(points, ["a", "b"], labels))
    with store.writer() as writer:
        for index in range(2):
            rows = {
                name: SampleRows(
                    np.ones((3, plan.width), np.float32) if plan.rows != "pooled" else None,
                    np.ones(plan.width, np.float32) if plan.rows != "tokens" else None,
                )
                for name, plan in points.items()
            }
            columns = {
                plan.stream or name: (np.full(3, 4), np.full(3, 2))
                for name, plan in points.items()
                if plan.rows != "pooled"
            }
            writer.put(index, rows, columns)
    return ActivationStore.open(path)


def test_what_is_missing_is_named_with_the_option_that_provides_it(tmp_path: Path) -> None:
    loaded = tiny.llava()
    lengths = np.array([3, 3])
    tokens = lambda width: PointPlan(width, "tokens", lengths=lengths, stream="adapter")  # noqa: E731
    cases = [
        ({"llm_final": PointPlan(48, "pooled")}, {}, "--points adapter_output --rows tokens"),
        ({"adapter_output": PointPlan(48, "pooled")}, {"text": ["a", "b"]}, "--rows both"),
        ({"adapter_output": tokens(48)}, {"kind": ["x", "y"]}, "no target texts.*target_label"),
        ({"adapter_output": tokens(32)}, {"text": ["a", "b"]}, "32 wide, the decoder of tiny/llava 48"),
        ({"adapter_output": tokens(48)}, {"text": [None, ""]}, "no target text"),
    ]
    for number, (points, labels, message) in enumerate(cases):
        with pytest.raises(EngineError, match=message):
            open_source(loaded, plain_store(tmp_path / f"{number}.zarr", points, labels))
    store = plain_store(tmp_path / "half.zarr", {"adapter_output": tokens(48)}, {"text": ["a", None]})
    source = open_source(loaded, store)
    assert source.ids == ("a",)
    assert source.left_out == (("b", "it has no target text"),)
    with pytest.raises(EngineError, match="'captions'"):
        open_source(loaded, store, target_label="captions")
    assert len(open_source(loaded, store, target="paper")) == 2


def test_another_layout_than_the_processors_is_refused(tmp_path: Path) -> None:
    loaded, _, store = captured(tmp_path, "llava")
    assert store.provenance["layout"]["runs"][:2] == [[2, 1], [4, 16]]
    assert len(open_source(loaded, store)) == N
    loaded.collator.tokenizer = tiny.tokenizer(bos=False)
    with pytest.raises(EngineError, match=r"cannot be rebuilt.*llm_hidden_0"):
        open_source(loaded, store)
    assert (
        len(open_source(loaded, store, prompt="a photo")) == N
    )  # a prompt of one's own has nothing to equal


def test_a_model_that_takes_no_embeddings(case: Any) -> None:
    loaded, _, store = case
    source = open_source(loaded, store)

    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loaded.model.get_submodule(loaded.structure.decoder)
            self.head = loaded.model.get_output_embeddings()

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.inner(input_ids))

    with pytest.raises(EngineError, match="inputs_embeds"):
        Replay(dataclasses.replace(loaded, model=Closed(), structure=None), source)
    with pytest.raises(ValueError, match="batch_size"):
        Replay(loaded, source, batch_size=0)
