"""One forward: which rows are real, what runs, what is left behind."""

from __future__ import annotations

import gc
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modegap.engine.capture import Capturer
from modegap.engine.capture.capturer import check_finite
from modegap.engine.capture.rows import host_rows
from modegap.engine.datasets import Sample
from modegap.engine.errors import EngineError
from modegap.engine.models import adopt

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_models.py"))))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def run(loaded, points, inputs) -> dict:
    with Capturer(loaded, points) as capture:
        return capture(inputs)


def calls(model: torch.nn.Module) -> dict[str, int]:
    """Counts forward calls by module path from now on."""
    found: dict[str, int] = {}
    for path, module in model.named_modules():

        def count(*_, path=path) -> None:
            found[path] = found.get(path, 0) + 1

        module.register_forward_pre_hook(count)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_batch_equals_its_samples_one_by_one(family: str, side: str) -> None:
    make, samples = tiny.FAMILIES[family]
    loaded = make(side)
    with torch.no_grad():  # what stands at padding is huge: one leaked row would show
        loaded.model.get_input_embeddings().weight[0] = 1e3
    batch = samples(6)
    with Capturer(loaded, loaded.select(["*"])) as capture:
        together = capture(loaded.collate(batch, target=True))
        alone = [capture(loaded.collate([sample], target=True)) for sample in batch]
    for name, block in together.items():
        rows = host_rows(block, "both")
        for i, single in enumerate(alone):
            one = single[name]
            expected = one.x[0][one.mask[0]].numpy()
            assert rows[i].tokens.shape == expected.shape, name
            np.testing.assert_allclose(rows[i].tokens, expected, rtol=2e-4, atol=2e-4, err_msg=name)
            mean = expected.astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(rows[i].pooled, mean, rtol=2e-4, atol=2e-4, err_msg=name)


def test_pooling_sees_no_padding() -> None:
    loaded = tiny.audio()
    inputs = loaded.collate(tiny.audio_samples(5))
    with Capturer(loaded, loaded.select(["encoder_output", "llm_final"])) as capture:
        blocks = capture(inputs)
    for block in blocks.values():
        clean = [row.pooled for row in host_rows(block, "pooled")]
        block.x[~block.mask] = 3e4
        for before, after in zip(clean, host_rows(block, "pooled"), strict=True):
            np.testing.assert_array_equal(before, after.pooled)


@pytest.mark.parametrize(
    ("points", "runs", "rests"),
    [
        (["adapter_output"], "{adapter}", "{layers}.0"),
        (["encoder_output"], "{encoder}", "{layers}.0"),
        (["llm_hidden_0"], "{decoder}", "{layers}.0"),
        (["llm_hidden_1", "adapter_output"], "{layers}.0", "{layers}.1"),
        (["llm_hidden_2"], "{layers}.1", "{layers}.2"),
        (["llm_final"], "{norm}", "{layers}.3"),
        (["*"], "{norm}", "{layers}.3"),
        (["text_embedding"], "{embedding}", "{encoder}"),
    ],
)
def test_the_forward_stops_at_the_last_point(points: list[str], runs: str, rests: str) -> None:
    loaded = tiny.llava()
    inputs = loaded.collate(tiny.image_samples(3))
    parts = loaded.structure
    names = {name: getattr(parts, name) for name in parts.__slots__}
    runs, rests = runs.format(**names), rests.format(**names)
    head = loaded.model.get_output_embeddings()
    (head_path,) = [path for path, module in loaded.model.named_modules() if module is head]
    with Capturer(loaded, loaded.select(points)) as capture:
        counted = calls(loaded.model)
        capture(inputs)
    assert counted[runs] >= 1
    assert head_path not in counted
    # our own pre-hook stops llm_hidden_0 before the first layer's forward, but after the counting one
    assert [path for path in counted if path.startswith(rests + ".")] == []
    if points != ["llm_hidden_0"]:
        assert rests not in counted


def test_one_forward_a_batch() -> None:
    loaded = tiny.llava()
    inputs = loaded.collate(tiny.image_samples(3), target=True)
    counted = calls(loaded.model)
    with Capturer(loaded, loaded.select(["encoder_output", "adapter_output", "llm_*"])) as capture:
        for _ in range(3):
            capture(inputs)
    assert set(counted.values()) == {3}


def test_hooks_and_mode_come_back_also_after_errors() -> None:
    loaded = tiny.llava()
    inputs = loaded.collate(tiny.image_samples(2))
    loaded.model(**inputs.tensors)  # transformers installs hooks of its own in the first forward
    users = loaded.model.get_output_embeddings().register_forward_hook(lambda *_: None)
    loaded.model.train()
    before = hooks(loaded.model)
    with Capturer(loaded, loaded.select(["*"])) as capture:
        assert hooks(loaded.model) > before
        capture(inputs)
    assert hooks(loaded.model) == before
    with pytest.raises(RuntimeError, match="mine"), Capturer(loaded, loaded.select(["*"])):
        raise RuntimeError("mine")
    assert hooks(loaded.model) == before
    assert loaded.model.training
    users.remove()
    bad = adopt(loaded.model, loaded.processor, points={"x": loaded.structure.encoder})
    with pytest.raises(EngineError), Capturer(bad, bad.select(["x", "encoder_output"])) as capture:
        capture(bad.collate(tiny.text_samples(2)))
    assert hooks(loaded.model) == before - 1


def test_memory_is_flat() -> None:
    loaded = tiny.llava()
    batch = tiny.image_samples(3)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    with Capturer(loaded, loaded.select(["*"])) as capture:
        counts = []
        for _ in range(3):
            for _ in range(20):
                [host_rows(block, "both") for block in capture(loaded.collate(batch)).values()]
            counts.append(tensors())
    assert counts[1:] == [counts[1]] * 2


def test_values_that_are_not_finite_name_the_sample() -> None:
    loaded = tiny.text()
    tokens = loaded.processor
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[tokens.convert_tokens_to_ids("dog")] = torch.nan
    batch = [Sample("good", "a cat"), Sample("bad", "a dog"), Sample("too", "dog")]
    message = r"sample 'bad' has NaN or infinite values at llm_hidden_1 \(torch.float32\)"
    with Capturer(loaded, loaded.select(["llm_hidden_1"])) as capture:
        check_finite(capture(loaded.collate([Sample("good", "a cat")])), ["good"])
        blocks = capture(loaded.collate(batch))
    ids = [sample.id for sample in batch]
    with pytest.raises(EngineError, match=message):
        check_finite(blocks, ids)
    for rows in ("tokens", "pooled"):
        with pytest.raises(EngineError, match=message):
            host_rows(blocks["llm_hidden_1"], rows, ids, name="llm_hidden_1")


def test_text_does_not_pass_the_adapter() -> None:
    loaded = tiny.llava()
    with pytest.raises(EngineError, match="sample 'text-0' brings no media, so nothing passes adapter"):
        run(loaded, loaded.select(["adapter_output"]), loaded.collate(tiny.text_samples(2)))
    with Capturer(loaded, loaded.select(["llm_hidden_1", "text_embedding"])) as capture:
        found = capture(loaded.collate(tiny.text_samples(2)))
    assert set(found) == {"llm_hidden_1", "text_embedding"}
    with pytest.raises(EngineError, match="sample 'mute' has no text to embed"):
        run(
            loaded,
            loaded.select(["text_embedding"]),
            loaded.collate([Sample("mute", "", tiny.image_samples(1)[0].media)]),
        )


def test_modules_that_do_not_run_or_run_twice() -> None:
    made = tiny.llava()
    inputs = made.collate(tiny.image_samples(2))
    made.model.spare = torch.nn.Linear(2, 2)
    idle = adopt(made.model, made.processor, points={"idle": "spare"})
    with pytest.raises(EngineError, match="spare did not run in the forward"):
        run(idle, idle.select(["idle"]), inputs)
    first, second = list(made.model.get_submodule(made.structure.layers))[:2]
    second.mlp = first.mlp
    twice = adopt(made.model, made.processor, points={"mlp": f"{made.structure.layers}.0.mlp"})
    with pytest.raises(EngineError, match="mlp runs more than once"):
        run(twice, twice.select(["mlp", "llm_final"]), inputs)


def test_rows_that_do_not_fit_the_placeholders() -> None:
    made = tiny.llava()
    inputs = made.collate(tiny.image_samples(2))
    stack = next(p for p, _ in made.model.named_modules() if p.endswith("encoder.layers"))
    wide = adopt(made.model, made.processor, points={"adapter_output": f"{stack}.2"})
    with pytest.raises(EngineError, match="17 rows a sample, the prompt of 'image-0' has 16 placeholders"):
        run(wide, wide.select(["adapter_output"]), inputs)
    text = adopt(made.model, made.processor, points={"llm_final": f"{stack}.2"})
    with pytest.raises(EngineError, match=r"got shape \[2, 17, 32\] for \[2, 21\] tokens"):
        run(text, text.select(["llm_final"]), inputs)
