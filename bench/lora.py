"""LoRA training on stored rows beside the published recipe: `python -m bench.lora --out DIR`.

A LLaVA-1.5-7B shape with random bf16 weights and random images; the adapter's output of every image is kept as a store
would hold it (fp16, 576 rows). Compared at the same effective batch of 8, in one run on one GPU, samples a second of
whole optimiser steps (forward, backward, clip, AdamW; medians) and the peak of the GPU's memory:

  recipe     the published script's loop, written anew: the whole model with its encoder, one sample a forward, logits
             of every position, loss over 8 accumulated, gradient checkpointing, autocast, token accuracy. Its two
             calls of the processor a sample are left out, which favours it.
  modegap    `modegap.engine.lora`, with and without checkpointing, by samples a forward; rows come from memory,
             not from a store.

Both train the same adapter (r 16 on q, k, v, o of the decoder) on the same answers. Correctness first: on a small model
in fp32 both must give the same gradient of an effective batch to 1e-3; then the large one in bf16 within what rounding
explains. A failed check is an exit code of 1 and no timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from modegap.engine.lora.adapters import Adapter, LoraSpec, fresh
from modegap.engine.lora.config import TrainConfig
from modegap.engine.lora.trainer import Run, training_mode

from .environment import environment
from .llava import LARGE, SMALL
from .replay import Material, material

BATCH = 8
GOAL = 2.0
SMALL_TOLERANCE = 1e-3
# bf16 keeps 8 bits, and a gradient has passed every layer twice: the directions must agree, the losses closely
LOSS_TOLERANCE, COSINE = 1e-2, 0.9


class Recipe:
    """The published loop: whole model, one sample a forward, gradients accumulated."""

    def __init__(self, made: Material, adapter: Adapter, config: TrainConfig, *, half: bool) -> None:
        self.made, self.half, self.config = made, half, config
        self.weights = list(adapter.parameters.values())
        self.optimiser = torch.optim.AdamW(self.weights, lr=config.lr, weight_decay=config.weight_decay)
        self.right = self.seen = 0

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        """The conversation of one image: prompt and answer, the prompt masked in the labels."""
        inputs = self.made.inputs(index)
        answer = torch.from_numpy(self.made.answers[index])[None].to(self.made.pixels.device)
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        labels = ids.clone()
        labels[:, : inputs["input_ids"].shape[1]] = -100
        return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def accumulate(self, members: Sequence[int]) -> float:
        self.optimiser.zero_grad()
        total = 0.0
        for index in members:
            batch = self.batch(index)
            with torch.amp.autocast(self.made.pixels.device.type, dtype=torch.bfloat16, enabled=self.half):
                out = self.made.loaded.model(**batch, use_cache=False)
                loss = out.loss / len(members)
            loss.backward()
            total += loss.item() * len(members)
            said, wanted = out.logits.argmax(dim=-1)[0, :-1], batch["labels"][0, 1:]
            self.right += (said[wanted != -100] == wanted[wanted != -100]).sum().item()
            self.seen += int((wanted != -100).sum())
        return total

    def step(self, members: Sequence[int]) -> float:
        loss = self.accumulate(members)
        torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
        self.optimiser.step()
        return loss


@contextmanager
def recipe(made: Material, config: TrainConfig, spec: LoraSpec) -> Iterator[Recipe]:
    """The published loop with its adapter in the model."""
    decoder: Any = made.loaded.model.get_submodule(made.loaded.structure.decoder)  # type: ignore[union-attr]
    with fresh(made.loaded, spec, seed=0) as adapter:
        decoder.train()
        if config.checkpointing:
            decoder.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            yield Recipe(made, adapter, config, half=config.precision == "bfloat16")
        finally:
            decoder.gradient_checkpointing_disable()
            decoder.eval()


@contextmanager
def ours(made: Material, config: TrainConfig, spec: LoraSpec) -> Iterator[Run]:
    """Our training with its adapter in the model."""
    with fresh(made.loaded, spec, seed=0) as adapter:
        run = Run(made.loaded, adapter, made.source("answer"), [], [], config, Path("unused"), {}, None)
        with training_mode(made.loaded, adapter, config):
            yield run


def gradient(run: Recipe | Run, members: Sequence[int]) -> tuple[float, torch.Tensor]:
    """(sum of the losses, gradient of all weights, fp64 on the host), B drawn at random so that A has one too."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in run.weights:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    loss = run.accumulate(members)
    parts = [weight.grad.double().flatten().cpu() for weight in run.weights if weight.grad is not None]
    return loss, torch.cat(parts)


def check(made: Material, config: TrainConfig, *, tight: bool) -> dict[str, float]:
    """How far the gradients of an effective batch differ; SystemExit where they do beyond rounding."""
    spec = LoraSpec(dropout=0.0)
    members = list(range(min(BATCH, len(made.answers))))
    with recipe(made, config, spec) as theirs:
        loss, expected = gradient(theirs, members)
    with ours(made, config, spec) as mine:
        own, found = gradient(mine, members)
    differences = {
        "loss": abs(own / loss - 1),
        "gradient": float((found - expected).norm() / expected.norm()),
        "cosine": float(torch.nn.functional.cosine_similarity(found, expected, dim=0)),
    }
    if tight:
        good = max(differences["loss"], differences["gradient"]) <= SMALL_TOLERANCE
    else:
        good = differences["loss"] <= LOSS_TOLERANCE and differences["cosine"] >= COSINE
    if not good:
        raise SystemExit(f"ours and the recipe differ: {differences}; nothing was timed")
    return differences


def timed(step: Callable[[], Any], samples: int, repeats: int) -> dict[str, float]:
    """Samples a second (median step after one to warm up) and the peak of the GPU's memory, GiB."""
    gpu = torch.cuda.is_available()
    took = []
    for turn in range(repeats + 1):
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step()
        if gpu:
            torch.cuda.synchronize()
        if turn:
            took.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    return {"samples_per_s": samples / statistics.median(took), "peak_gib": peak}


def run(made: Material, config: TrainConfig, sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Every way of training, timed."""
    spec = LoraSpec()
    members = list(range(BATCH))
    found: list[dict[str, Any]] = []

    def record(
        provider: str, batch: int, checkpointing: bool, measured: dict[str, float], **more: Any
    ) -> None:
        found.append(
            {"provider": provider, "batch": batch, "checkpointing": checkpointing, **measured, **more}
        )
        print(json.dumps(found[-1]), flush=True)

    for checkpointing in (True, False):
        own = TrainConfig(precision=config.precision, checkpointing=checkpointing)
        with recipe(made, own, spec) as theirs:
            measured = timed(lambda: theirs.step(members), BATCH, repeats)
        record("recipe", 1, checkpointing, measured)
        for size in sizes:
            own = TrainConfig(precision=config.precision, checkpointing=checkpointing, batch_size=size)
            with ours(made, own, spec) as mine:
                measured = timed(lambda: mine.step(members), BATCH, repeats)
                record("modegap", size, checkpointing, measured, retried=[n for _, n in mine.replay.retried])
    return found


def ratios(found: Sequence[dict[str, Any]]) -> list[str]:
    """Lines for people: ours with and without checkpointing against the recipe as published, with it."""
    base = next(entry for entry in found if entry["provider"] == "recipe" and entry["checkpointing"])
    lines = []
    for checkpointing in (True, False):
        mine = [e for e in found if e["provider"] == "modegap" and e["checkpointing"] == checkpointing]
        best = max(mine, key=lambda e: e["samples_per_s"])
        lines.append(
            f"{'with' if checkpointing else 'without'} checkpointing: {best['samples_per_s']:.2f} samples/s at "
            f"{best['batch']} a forward ({best['peak_gib']:.1f} GiB), the recipe {base['samples_per_s']:.2f} "
            f"({base['peak_gib']:.1f} GiB): {best['samples_per_s'] / base['samples_per_s']:.2f}x (goal {GOAL:g}x)"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for lora.json")
    parser.add_argument("--small", action="store_true", help="the small model only (any machine)")
    parser.add_argument("--commit", default=None)
    options = parser.parse_args()
    hf.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    if not gpu and not options.small:
        parser.error("no GPU: give --small")
    torch.backends.cuda.matmul.allow_tf32 = False
    began = time.perf_counter()
    exact = TrainConfig(precision="float32")
    small = material(SMALL, device, torch.float32, BATCH)
    checks = {"small, fp32": check(small, exact, tight=True)}
    print(json.dumps(checks), flush=True)
    if options.small:
        made, config, sizes, repeats = small, exact, (1, 8), 1
    else:
        made, sizes, repeats = material(LARGE, device, torch.bfloat16, BATCH), (1, 2, 4, 8), 3
        config = TrainConfig(precision="bfloat16")
        checks["7B shape, bf16"] = check(made, config, tight=False)
        print(json.dumps(checks), flush=True)
    found = run(made, config, sizes, repeats)
    lines = ratios(found)
    print("\n".join(lines))
    body = {
        "environment": {
            **environment("cuda" if gpu else "cpu", options.commit),
            "transformers": hf.__version__,
        },
        "shape": vars(made.shape),
        "effective_batch": BATCH,
        "checks": checks,
        "results": found,
        "summary": lines,
        "seconds": time.perf_counter() - began,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "lora.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
