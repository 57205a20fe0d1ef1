"""Training by replay takes the published recipe's steps: encoder in the loop, one sample at a time."""

from __future__ import annotations

import dataclasses
import json
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modegap.engine.errors import EngineError
from modegap.engine.lora import LoraSpec, TrainConfig, epoch_batches, fresh, train
from modegap.engine.lora import trainer as trainer_module
from modegap.engine.models import target_nll
from modegap.engine.models.fused import rms_norm

here = Path(__file__)
made = SimpleNamespace(**runpy.run_path(str(here.with_name("lora_material.py"))))
SPEC = LoraSpec(rank=4, alpha=8, dropout=0.0)
PLAIN = TrainConfig(epochs=1, lr=1e-2, checkpointing=False)
COUNT = 20


@pytest.fixture(scope="module", params=["llava", "audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded, store = made.captured(tmp_path_factory.mktemp("stores"), request.param, COUNT)
    return loaded, made.question_source(loaded, store), made.samples(request.param, COUNT)


def trained(case: Any, folder: Path, config: TrainConfig = PLAIN, spec: LoraSpec = SPEC, **more: Any) -> Any:
    loaded, source = case[:2]
    with fresh(loaded, spec, seed=7) as adapter:
        found = train(
            loaded, adapter, source, range(16), range(16, COUNT), config, checkpoint=folder / "c.st", **more
        )
        return adapter.state(), found


def recipe(case: Any, config: TrainConfig) -> Any:
    """The published recipe: whole model, batch 1, loss / 8 accumulated, clip, AdamW."""
    loaded, source, samples = case
    with fresh(loaded, SPEC, seed=7) as adapter:
        weights = list(adapter.parameters.values())
        optimiser = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
        lengths = [len(item) for item in source.items]
        for step in epoch_batches(range(16), lengths, 8, seed=config.seed, epoch=0):
            optimiser.zero_grad()
            for number in step:
                asked = dataclasses.replace(samples[number], text=samples[number].labels["kind"])
                inputs = loaded.collate([asked], target=True, prompt=made.QUESTION)
                labels = inputs.tensors["input_ids"].masked_fill(~inputs.target_mask, -100)
                loss = loaded.model(**inputs.tensors, labels=labels).loss
                (loss / len(step)).backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip)
            optimiser.step()
        return adapter.state()


def close(one: Any, other: Any, tolerance: float = 2e-4) -> None:
    assert one.keys() == other.keys()
    assert max(float(tensor.abs().max()) for tensor in one.values()) > 0.01
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("batch_size", [8, 3])
def test_steps_are_those_of_the_recipe_with_the_encoder_in_the_loop(
    case: Any, batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a beginning that is cut off would take its part of the gradient along
    monkeypatch.setattr("modegap.engine.replay.decoder.MIN_SHARED", 1)
    monkeypatch.setattr("modegap.engine.replay.decoder.MIN_SHARE", 0.0)
    config = dataclasses.replace(PLAIN, batch_size=batch_size)
    state, found = trained(case, tmp_path, config)
    close(state, recipe(case, config))
    assert (found.steps, found.epochs[0].samples, found.best_epoch) == (2, 16, 1)
    assert found.parameters == sum(tensor.numel() for tensor in state.values())


def test_checkpointing_changes_no_step(case: Any, tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, dropout=0.2)
    plain, _ = trained(case, tmp_path / "a", spec=spec)
    again, _ = trained(case, tmp_path / "b", dataclasses.replace(PLAIN, checkpointing=True), spec=spec)
    close(plain, again, 1e-5)
    without, _ = trained(case, tmp_path / "c")
    assert any(not torch.allclose(without[name], plain[name], atol=1e-3) for name in plain)  # dropout works
    assert not any(module.training for module in case[0].model.modules())


def test_bf16_autocast_trains_fp32_weights(case: Any, tmp_path: Path) -> None:
    state, found = trained(
        case, tmp_path, dataclasses.replace(PLAIN, precision="bfloat16", checkpointing=True)
    )
    exact, whole = trained(case, tmp_path / "exact")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert found.epochs[0].train_loss == pytest.approx(whole.epochs[0].train_loss, rel=0.05)
    assert any(not torch.equal(exact[name], state[name]) for name in state)


def test_what_does_not_fit_runs_in_parts(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = trained(case, tmp_path / "a", dataclasses.replace(PLAIN, batch_size=2))
    real = torch.autograd.grad

    def small_only(loss: torch.Tensor, weights: Any) -> Any:
        found = real(loss, weights)
        if packed[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")  # in the backward pass, half done
        return found

    packed: list[int] = []
    pack = trainer_module.Replay.rows

    class Counting(trainer_module.Replay):
        def rows(self, number: int) -> torch.Tensor:
            packed[-1] += 1
            return pack(self, number)

    run = trainer_module.Run._gradients

    def counted(self: Any, part: Any, count: int) -> Any:
        packed.append(0)
        return run(self, part, count)

    monkeypatch.setattr(trainer_module, "Replay", Counting)
    monkeypatch.setattr(trainer_module.Run, "_gradients", counted)
    monkeypatch.setattr(trainer_module.torch.autograd, "grad", small_only)
    state, found = trained(case, tmp_path / "b")
    assert found.retried == 2  # 8, then 4
    close(state, expected, 1e-5)


def test_early_stopping_keeps_the_best_weights(case: Any, tmp_path: Path) -> None:
    # a rate so high that the loss goes up and down
    config = dataclasses.replace(PLAIN, epochs=6, lr=2.0, patience=2)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        state, found = trained(case, tmp_path, config)
        assert torch.equal(torch.get_rng_state(), before)
    losses = [epoch.validation_loss for epoch in found.epochs]
    assert found.best_epoch == int(np.argmin(losses)) + 1
    assert found.stopped_early == (len(losses) < 6)
    assert len(losses) == min(6, found.best_epoch + 2)
    shorter, _ = trained(
        case, tmp_path / "s", dataclasses.replace(config, epochs=found.best_epoch, patience=6)
    )
    close(state, shorter, 1e-6)


def test_validation_is_of_the_weights_at_hand(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # keys and values of shared beginnings are kept by a replay: they are of other weights an epoch later
    monkeypatch.setattr("modegap.engine.replay.decoder.MIN_SHARED", 1)
    monkeypatch.setattr("modegap.engine.replay.decoder.MIN_SHARE", 0.0)
    loaded, source, samples = case
    with fresh(loaded, SPEC, seed=7) as adapter:
        config = dataclasses.replace(PLAIN, epochs=3, patience=3)
        found = train(
            loaded, adapter, source, range(16), range(16, COUNT), config, checkpoint=tmp_path / "c.st"
        )
        asked = [dataclasses.replace(s, text=s.labels["kind"]) for s in samples[16:]]
        whole = target_nll(loaded, asked, batch_size=1, prompt=made.QUESTION).mean()
    best = found.epochs[found.best_epoch - 1].validation_loss
    assert best == pytest.approx(whole, rel=1e-4)
    assert found.best_epoch > 1
    assert best == min(epoch.validation_loss for epoch in found.epochs)


def test_an_epoch_has_every_sample_once_and_steps_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(5, 200, size=1003).tolist()
    members = list(range(3, 1003))
    first = epoch_batches(members, lengths, 8, seed=1, epoch=0)
    assert sorted(number for step in first for number in step) == members
    assert {len(step) for step in first} == {8}
    assert first == epoch_batches(members, lengths, 8, seed=1, epoch=0)
    others = [
        epoch_batches(members, lengths, 8, seed=1, epoch=1),
        epoch_batches(members, lengths, 8, seed=2, epoch=0),
    ]
    assert all(first != other for other in others)

    def padding(steps: Any) -> float:
        return sum(len(s) * max(lengths[n] for n in s) - sum(lengths[n] for n in s) for s in steps)

    plain = [members[at : at + 8] for at in range(0, len(members), 8)]
    assert padding(first) < 0.25 * padding(plain)
    sizes = [len(step) for step in epoch_batches(members[:13], lengths, 8, seed=1, epoch=0)]
    assert sorted(sizes) == [5, 8]


def test_losses_that_are_not_finite_and_other_runs_are_errors(case: Any, tmp_path: Path) -> None:
    loaded, source = case[:2]

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    config = dataclasses.replace(PLAIN, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        trained(case, tmp_path, dataclasses.replace(config, epochs=2), progress=Once(9, interrupted))
    with pytest.raises(EngineError, match=r"another run \(epochs, lr differ\)"):
        trained(case, tmp_path, dataclasses.replace(config, lr=1.0))
    (tmp_path / "c.st").write_bytes(b"nothing")
    with pytest.raises(EngineError, match="cannot be read as a checkpoint"):
        trained(case, tmp_path, config)
    broken = dataclasses.replace(source, rows=lambda item: source.rows(item) * float("nan"))
    with pytest.raises(EngineError, match="loss is not finite at step 1"):
        trained((loaded, broken), tmp_path / "n", config)
    for wrong in ({"epochs": 0}, {"lr": 0.0}, {"clip": -1.0}, {"weight_decay": -1.0}, {"precision": "half"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainConfig(**wrong)


class Once:
    """Calls a function at the n-th sample seen."""

    def __init__(self, at: int, fn: Any) -> None:
        self.at, self.fn = at, fn

    def __call__(self, done: int, total: int) -> None:
        if done >= self.at:
            self.fn(done, total)


CHILD = """
import json, os, runpy, sys
from pathlib import Path
import torch
folder, material = Path(sys.argv[1]), runpy.run_path(sys.argv[2])
from modegap.engine.lora import LoraSpec, TrainConfig, fresh, train
from safetensors.torch import save_file
loaded, store = material["captured"](folder, "llava", 20)
source = material["question_source"](loaded, store)
with fresh(loaded, LoraSpec(), seed=0):
    pass  # imports peft before the forks
for line in sys.stdin:
    name, steps = line.split()
    pid = os.fork()
    if pid == 0:
        config = TrainConfig(epochs=3, lr=1e-2, checkpointing=False, save_every=1, patience=9)
        seen = []
        def progress(done, total):
            seen.append(done)
            if len(seen) == int(steps):
                os.kill(os.getpid(), 9)
        with fresh(loaded, LoraSpec(rank=4, alpha=8, dropout=0.3), seed=7) as adapter:
            found = train(loaded, adapter, source, range(16), range(16, 20), config,
                          checkpoint=folder / name / "c.st", progress=progress)
            save_file(adapter.state(), folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps([e.validation_loss for e in found.epochs]))
        os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(here.with_name("lora_material.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def run(name: str, kill_after: int) -> int:
            assert child.stdin is not None
            assert child.stdout is not None
            print(name, kill_after, file=child.stdin, flush=True)
            return int(child.stdout.readline())

        assert run("whole", 0) == 0
        kills, chance = 0, random.Random(0)
        while run("killed", chance.choice([2, 3])) == 9:
            kills += 1
        child.stdin.close()
    assert kills >= 2
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()
    assert len(json.loads((tmp_path / "whole.json").read_text())) == 3
    one, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("killed", "whole"))
    assert one == other
    assert not [
        path for path in (tmp_path / "killed").iterdir() if path.name != "c.st" and "tmp" not in path.name
    ]


def test_the_fused_norm_stays_in_half_precision_under_autocast() -> None:
    norm = torch.nn.RMSNorm(16, eps=1e-6, dtype=torch.bfloat16)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain = rms_norm(norm)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rms_norm(norm)(x), plain)
        assert rms_norm(norm)(x).dtype == torch.bfloat16
