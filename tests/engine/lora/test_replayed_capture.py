"""Capture by replay stores what capture stores; greedy answers are those of `generate`."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modegap.engine.capture import extract_replayed
from modegap.engine.errors import EngineError
from modegap.engine.replay import Replay, greedy, open_source
from modegap.stores import ActivationStore, StoreError, verify

here = Path(__file__)
made = SimpleNamespace(**runpy.run_path(str(here.with_name("lora_material.py"))))
POINTS = ("adapter_output", "llm_hidden_0", "llm_hidden_2", "llm_final")
COUNT = 9


@pytest.fixture(scope="module", params=["llava", "audio"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("pool", ["all", "modality"])
def test_rows_are_those_of_the_whole_model(family: str, pool: Any, tmp_path: Path) -> None:
    loaded, store = made.captured(tmp_path, family, COUNT, points=POINTS, pool=pool)
    source = open_source(loaded, store, target="paper")
    options = {"rows": dict.fromkeys(POINTS, "both"), "pool": pool, "dtype": "float32", "batch_size": 4}
    again = extract_replayed(loaded, source, tmp_path / "again.zarr", POINTS, **options)
    assert again.samples == store.samples
    for point in POINTS:
        for kind in ("tokens", "pooled"):
            one, other = (opened.rows(point, kind) for opened in (store, again))
            assert one.shape == other.shape
            np.testing.assert_allclose(
                other.read(0, one.shape[0]), one.read(0, one.shape[0]), rtol=1e-4, atol=2e-5, err_msg=point
            )
    for point in ("adapter_output", "llm_final"):
        one, other = (opened.rows(point) for opened in (store, again))
        span = (0, one.shape[0])
        np.testing.assert_array_equal(one.token_ids(*span), other.token_ids(*span))
        np.testing.assert_array_equal(one.modality(*span), other.modality(*span))
    assert {name: column.values for name, column in again.labels.items()} == {
        name: column.values for name, column in store.labels.items()
    }
    assert verify(again).ok
    # what was stored is replayed again
    losses = [Replay(loaded, open_source(loaded, opened)).losses() for opened in (store, again)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


def test_it_goes_on_where_it_was_stopped(family: str, tmp_path: Path) -> None:
    loaded, store = made.captured(tmp_path, family, COUNT)
    source = open_source(loaded, store, target="paper").subset([0, 2, 3, 5, 7, 8], "not asked for")
    options = {"batch_size": 2, "kinds": {"kind": "text"}}

    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StopError

    path = tmp_path / "s.zarr"
    with pytest.raises(StopError):
        extract_replayed(loaded, source, path, ["llm_final"], progress=stop, **options)
    stopped = extract_replayed(loaded, source, path, ["llm_final"], **options)
    whole = extract_replayed(loaded, source, tmp_path / "w.zarr", ["llm_final"], **options)
    assert stopped.content_hash() == whole.content_hash()
    assert stopped.samples == [store.samples[i] for i in (0, 2, 3, 5, 7, 8)]
    assert stopped.labels["kind"].kind == "text"
    with pytest.raises(StoreError, match="another plan"):
        extract_replayed(loaded, source, path, ["llm_hidden_1"], **options)
    with pytest.raises(EngineError, match="encoder_output does not lie in the decoder"):
        extract_replayed(loaded, source, tmp_path / "x.zarr", ["encoder_output"])


def test_greedy_answers_are_those_of_generate(family: str, tmp_path: Path) -> None:
    loaded, store = made.captured(tmp_path, family, COUNT)
    source = made.question_source(loaded, store)
    found = greedy(Replay(loaded, source, batch_size=4), max_new_tokens=6)
    end = loaded.collator.tokenizer.eos_token_id
    lengths = set()
    for sample, tokens in zip(made.samples(family, COUNT), found, strict=True):
        inputs = loaded.collate([sample], prompt=made.QUESTION).tensors
        count = inputs["input_ids"].shape[1]
        inputs.pop("position_ids", None)
        said = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, count:].tolist()
        assert tokens.tolist() == (said[: said.index(end)] if end in said else said)
        lengths.add(len(tokens))
    assert lengths != {0}
    # a token that ends the text ends it: the one written first, say
    first = int(next(tokens for tokens in found if len(tokens))[0])
    loaded.model.generation_config.eos_token_id = [end, first]
    cut = greedy(Replay(loaded, source, batch_size=3), max_new_tokens=6)
    loaded.model.generation_config.eos_token_id = end
    assert any(len(part) < len(whole) for whole, part in zip(found, cut, strict=True))
    for whole, part in zip(found, cut, strict=True):
        at = whole.tolist().index(first) if first in whole.tolist() else len(whole)
        assert part.tolist() == whole.tolist()[:at]
    with pytest.raises(ValueError, match="max_new_tokens"):
        greedy(Replay(loaded, source), max_new_tokens=0)


def test_a_store_with_prompts_of_its_own_keeps_them(tmp_path: Path) -> None:
    loaded, store = made.captured(tmp_path, "llava", COUNT, points=("adapter_output", "llm_hidden_0"))
    source = open_source(loaded, store, target="paper")
    other = dataclasses.replace(
        source, items=tuple(dataclasses.replace(i, tokens=np.append(i.tokens, 9)) for i in source.items)
    )
    again = extract_replayed(
        loaded,
        other,
        tmp_path / "again.zarr",
        ("adapter_output", "llm_hidden_0"),
        rows={"adapter_output": "both", "llm_hidden_0": "both"},
    )
    opened = open_source(loaded, ActivationStore.open(again.path))
    assert all(item.tokens[item.prompt_length - 1] == 9 for item in opened.items)
