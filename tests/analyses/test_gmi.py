"""GMI against numerical integration, and decoders with known accessibility."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modegap import cli
from modegap.analyses.gmi import GmiConfig, gmi
from modegap.analyses.gmi.information import probe_information
from modegap.analyses.gmi.laws import blocks, prompt_key
from modegap.analyses.gmi.scores import best_scale, clip, contributions, label_contributions
from modegap.analyses.saved import load_result, save_result
from modegap.engine.models import target_nll
from modegap.stores import StoreError

here = Path(__file__)
cases = SimpleNamespace(**runpy.run_path(str(here.with_name("replay_cases.py"))))
toy = SimpleNamespace(**runpy.run_path(str(here.with_name("toy_decoder.py"))))
WORDS = toy.tiny.TEXT["vocab_size"]
A, B = 2.5, 4.0  # slope of the decoder, slope of the channel


def log_q(x: np.ndarray) -> np.ndarray:
    """log q of the two words under state x, among WORDS words of which the others have logit 0: [n, 2]."""
    logits = np.stack([A * x, -A * x], axis=1)
    norm = np.log(np.exp(logits).sum(1) + WORDS - 2)
    return np.maximum(logits - norm[:, None], -np.log(WORDS))


def integrated() -> float:
    """GMI of that decoder for x ~ N(0, 1) and P(first word | x) = sigmoid(2 B x), by quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    p = np.stack([1 / (1 + np.exp(-2 * B * x)), 1 / (1 + np.exp(2 * B * x))], axis=1)
    scores = log_q(x)
    first = (w[:, None] * p * scores).sum()
    prior = (w[:, None] * p).sum(0)
    return float(first - (prior * np.log((w[:, None] * np.exp(scores)).sum(0))).sum())


def channel(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return x, (rng.random(n) > 1 / (1 + np.exp(-2 * B * x))).astype(np.int64)


def test_contributions_match_numerical_integration() -> None:
    x, y = channel(12_000, 0)
    values = []
    for part in np.array_split(np.arange(len(x)), 30):
        scores = log_q(x[part])[:, y[part]].T  # target i under the rows of j
        values.append(contributions(scores, ~np.eye(len(part), dtype=bool)).values)
    found = np.concatenate(values)
    assert found.mean() == pytest.approx(integrated(), abs=4 * found.std() / np.sqrt(len(found)))
    assert integrated() > 0.1


def test_the_bias_of_few_alternatives_is_estimated() -> None:
    x, y = channel(20_000, 1)
    truth = integrated()

    def few(size: int) -> tuple[float, float]:
        found = []
        for part in np.array_split(np.arange(len(x)), len(x) // size):
            made = contributions(log_q(x[part])[:, y[part]].T, ~np.eye(len(part), dtype=bool))
            found.append((made.values.mean(), made.bias.mean()))
        return tuple(np.mean(found, axis=0))  # type: ignore[return-value]

    value, bias = few(5)
    assert value - truth > 0.02
    assert value - bias == pytest.approx(truth, abs=0.5 * (value - truth))


def test_a_linear_softmax_decoder_from_store_to_result(tmp_path: Path) -> None:
    x, y = channel(400, 2)
    loaded = toy.decoder({"cat": [A, 0, 0], "dog": [-A, 0, 0]}, 3)
    rng = np.random.default_rng(0)
    states = np.column_stack([x, rng.normal(size=(400, 2))])
    store = toy.stored(tmp_path / "s.zarr", states, [["cat", "dog"][k] for k in y], {})
    found = gmi(loaded, store, alternatives=39, batch_size=400, draws=300)
    law = found.law("modal")
    assert found.vocabulary == WORDS
    exact = []
    for part in blocks(SimpleItems(400), 40, 42):
        scores = log_q(x[part])[:, y[part]].T
        exact.append(contributions(scores, ~np.eye(len(part), dtype=bool)).values)
    np.testing.assert_allclose(np.sort(law.values), np.sort(np.concatenate(exact)), rtol=1e-3, atol=1e-4)
    assert law.gmi.low < integrated() < law.gmi.high + law.bias
    assert 0 < law.supremum < np.log(40)
    few = {"alternatives": 39, "batch_size": 400, "draws": 20, "n_samples": 80}
    mean, total = (gmi(loaded, store, score=score, **few).law("modal").gmi for score in ("mean", "total"))
    assert total.value == pytest.approx(mean.value)  # one token a target
    literal = gmi(loaded, store, given_target=True, **few)
    assert literal.law("modal").gmi.value < 0.02  # Jensen: E l - log E exp l


class SimpleItems(list):
    """Items with one prompt, for `blocks`."""

    def __init__(self, count: int) -> None:
        item = SimpleNamespace(tokens=np.arange(5), prompt_length=4, slot=np.array([1, 2]))
        super().__init__([item] * count)


def attribute_store(path: Path, n: int = 240, classes: int = 3, noise: float = 0.7) -> Any:
    rng = np.random.default_rng(5)
    codes = rng.integers(classes, size=n)
    centres = np.array([[1.5, 0], [-0.75, 1.3], [-0.75, -1.3]])
    states = np.column_stack([centres[codes] + noise * rng.normal(size=(n, 2)), rng.normal(size=(n, 2))])
    words = ["cat", "dog", "red"]
    store = toy.stored(path, states, ["a"] * n, {"kind": [words[k] for k in codes], "odd": ["cat"] * n})
    return store, words, centres / noise**2, states, codes


def test_an_ignored_attribute_is_read_by_the_probe_and_not_by_the_decoder(tmp_path: Path) -> None:
    store, words, *_ = attribute_store(tmp_path / "s.zarr")
    loaded = toy.decoder({word: [0, 0, 0.7, -0.3] for word in words}, 4)  # deaf to the first two coordinates
    found = gmi(loaded, store, labels=["kind"], batch_size=256, draws=200).attribute("kind")
    assert found.gmi.value == 0.0
    assert found.information.value > 0.5
    assert found.delta.value == pytest.approx(found.information.value, abs=1e-3)
    assert found.delta.low > 0.4
    assert found.probe_accuracy > 0.8


def test_a_matched_decoder_leaves_nothing_out_of_reach(tmp_path: Path) -> None:
    store, words, directions, *_ = attribute_store(tmp_path / "s.zarr")
    weights = {w: [*directions[k], 0, 0] for k, w in enumerate(words)}  # its logits are the log-likelihoods
    found = gmi(toy.decoder(weights, 4), store, labels=["kind"], batch_size=256, draws=200).attribute("kind")
    assert found.information.value > 0.5
    assert abs(found.delta.value) < 0.05
    assert found.delta.low < 0 < found.delta.high + 0.02
    assert found.scale == pytest.approx(1.0, rel=0.4)
    hot = {w: [7 * x for x in v] for w, v in weights.items()}  # too sure of itself: the scale mends it
    mended = gmi(toy.decoder(hot, 4), store, labels=["kind"], batch_size=256, draws=50).attribute("kind")
    assert mended.gmi.value == pytest.approx(found.gmi.value, abs=2e-3)
    assert mended.scale == pytest.approx(found.scale / 7, rel=1e-2)


def test_the_scale_is_a_supremum() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(3, size=200)
    scores = rng.normal(size=(200, 3)) + 2.0 * np.eye(3)[codes]
    prior = np.bincount(codes) / 200
    value, scale = best_scale(scores, codes, prior)
    means = [label_contributions(scores, codes, prior, s).mean() for s in np.geomspace(1e-3, 1e3, 400)]
    assert value >= max(means) - 1e-7
    assert label_contributions(scores, codes, prior, scale).mean() == pytest.approx(value)
    assert best_scale(-scores, codes, prior)[0] == 0.0


def test_the_probe_bounds_the_information_from_below() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(2, size=600)
    x = (rng.normal(size=(600, 1)) + 2.4 * codes[:, None] - 1.2).astype(np.float32)
    grid, step = np.linspace(-9, 9, 20001, retstep=True)
    p = np.stack([np.exp(-((grid - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (-1.2, 1.2)])
    truth = 0.5 * step * (p * np.log(p / p.mean(0))).sum()
    found = probe_information(x, codes, folds=5, C=1.0, seed=0)
    assert found.values.mean() == pytest.approx(truth, abs=0.05)
    assert found.entropy == pytest.approx(np.log(2), abs=0.01)
    # pure noise in more dimensions than rows: an uncalibrated probe is worse than the prior, this one is not
    noise = rng.normal(size=(120, 400)).astype(np.float32)
    nothing = probe_information(noise, codes[:120], folds=5, C=1.0, seed=0)
    assert -0.1 < nothing.values.mean() < 0.1
    groups = np.repeat(np.arange(60), 10)
    grouped = probe_information(x, codes, folds=5, C=1.0, seed=0, groups=groups)
    assert grouped.values.mean() == pytest.approx(truth, abs=0.06)


def test_scores_are_clipped_at_the_uniform_decoder() -> None:
    scores = np.array([[-1.0, -50.0]])
    tokens = np.array([[1, 3]])
    np.testing.assert_allclose(clip(scores, tokens, 100, total=False), [[-1, -np.log(100)]])
    np.testing.assert_allclose(clip(scores, tokens, 100, total=True), [[-1, -3 * np.log(100)]])


def test_prompts_are_compared_without_their_rows() -> None:
    def item(tokens: list[int], slot: list[int]) -> Any:
        return SimpleNamespace(tokens=np.array(tokens), slot=np.array(slot), prompt_length=len(tokens) - 1)

    one = prompt_key(item([1, 9, 9, 5, 7], [1, 2]))
    assert one == prompt_key(item([1, 9, 9, 9, 5, 8], [1, 2, 3]))
    assert one != prompt_key(item([1, 9, 9, 6, 7], [1, 2]))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cases.make_case(tmp_path_factory.mktemp("stores"), "audio", 14)


def test_both_laws_labels_and_their_display(case: Any, tmp_path: Path) -> None:
    options = {
        "labels": ["kind", "score"],
        "question": "Describe the {label}",
        "alternatives": 5,
        "draws": 50,
    }
    found = gmi(case.loaded, case.modal, case.text, folds=2, **options)
    assert [(law.law, law.point, len(law.values)) for law in found.laws] == [
        ("modal", "adapter_output", 14),
        ("text", "text_embedding", 14),
    ]
    difference = found.law("modal").values - found.law("text").values
    assert found.gap.value == pytest.approx(difference.mean())
    assert found.gap.low < found.gap.value < found.gap.high
    assert all(-1e-6 <= law.supremum <= np.log(7) for law in found.laws)  # blocks of at most 7
    assert [(a.label, a.law, a.n) for a in found.attributes if not a.message] == [
        ("kind", "modal", 14),
        ("kind", "text", 14),
    ]
    assert "two classes" in found.attribute("score").message or "only" in found.attribute("score").message
    assert found.attribute("kind").gmi.value >= 0
    after = load_result(save_result(found, tmp_path / "g.json"))
    assert after.to_json() == found.to_json()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["gap"]
    assert [len(table.rows) for table in found.tables()] == [2, 4]
    assert "<svg" in found._repr_html_()
    alone = gmi(case.loaded, case.modal, alternatives=5, draws=20)
    assert alone.gap is None
    assert "<svg" in alone._repr_html_()


@pytest.fixture
def undecided(case: Any) -> Iterator[Any]:
    """The model with smaller logits: random ones are so far off that every score is clipped to the same."""
    head = case.loaded.model.get_output_embeddings().weight.data
    before = head.clone()
    head.mul_(0.2)
    yield case
    head.copy_(before)


def test_the_scores_are_those_of_the_whole_model(undecided: Any) -> None:
    case, count = undecided, 6
    found = gmi(case.loaded, case.modal, alternatives=count, draws=20, n_samples=count)
    samples = case.samples[:count]
    nll = [
        [float(target_nll(case.loaded, [replace(a, media=b.media)], batch_size=1)[0]) for b in samples]
        for a in samples
    ]
    scores = np.maximum(-np.array(nll), -np.log(found.vocabulary))
    others = ~np.eye(count, dtype=bool)
    expected = [scores[i, i] - np.log(np.exp(scores[i][others[i]]).mean()) for i in range(count)]
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(found.law("modal").values, expected, rtol=1e-3, atol=2e-5)


def test_command_and_mistakes(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modegap._facade.load", lambda *args, **more: case.loaded)
    out = str(tmp_path / "g.json")
    args = [
        "gmi",
        "m",
        str(case.modal.path),
        "--text",
        str(case.text.path),
        "--out",
        out,
        "--alternatives",
        "4",
    ]
    assert cli.main([*args, "--labels", "kind", "--folds", "2", "--draws", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == load_result(out).to_json()
    with pytest.raises(StoreError, match="kind"):
        gmi(case.loaded, case.modal, labels=["kid"])
    with pytest.raises(ValueError, match="at least 1"):
        gmi(case.loaded, case.modal, alternatives=0)
    with pytest.raises(ValueError, match="only 0 samples share their prompt"):
        gmi(case.loaded, case.modal, n_samples=1)
    for options in ({"target": "paper"}, {"labels": "kind"}, {"verbalise": "it"}, {"folds": 1}, {"C": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            GmiConfig(**options)
