"""Decoder experiments by replay beside the published scripts' loops: `python -m bench.replay --out DIR`.

A LLaVA-1.5-7B shape with random bf16 weights and random images; the adapter's output of every image is kept as a
store would hold it (fp16, 576 rows). Compared, ms a sample, medians, in one run on one GPU:

  gradients  `lipschitz` and `gradproj` of all 4,096 modes from one pass, by batch size with peak memory, against
             one published loop (batch 1: a forward for z, a forward with z replaced under autocast, one backward).
             Their script asks for gradient checkpointing, which does nothing in evaluation mode: timed as it runs
             and with checkpointing at work (training mode, no dropout).
  ablation   four conditions (none, MS, TA, random; 11 modes each) by batch size, against four batch-1 forwards
             through encoder and all with the published hook.

Both score what the scripts score (the prompt's tokens) and the answer's tokens, the default. A timed pass is what a
user sees: the images over and over, at least four batches and 64 samples, so that reading ahead and fixed costs weigh
as they do there; what a pass costs beside its batches (directions to the GPU, checks of the fused layers) is reported
by itself. Correctness first: a small model in fp32 must give the loop's norms, projections and losses to 1e-3; then
the large one in bf16 within what rounding explains. A failed check is an exit code of 1 and no timing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from modegap.analyses.lipschitz.gradients import gradient_pass
from modegap.engine.models import LoadedModel
from modegap.engine.replay import Replay
from modegap.engine.replay.items import ReplayItem
from modegap.engine.replay.source import ReplaySource
from modegap.kernels import ablate as project_out

from .environment import environment
from .llava import BOS, LARGE, MEDIA, SMALL, Shape, build

Measured = dict[str, float]
SMALL_TOLERANCE = 1e-3
# bf16 keeps 8 bits; a loss is a mean over tokens, a gradient has passed all layers twice
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-2, 1e-1


@dataclass(frozen=True)
class Material:
    """Images, prompts, answers and the adapter's output as a store holds it."""

    loaded: LoadedModel
    shape: Shape
    pixels: torch.Tensor
    prompt: np.ndarray[Any, np.dtype[np.int64]]
    answers: np.ndarray[Any, np.dtype[np.int64]]
    stored: torch.Tensor

    def source(self, target: str, count: int | None = None) -> ReplaySource:
        """`count` samples as a replay reads them, the images over and over; each once unless given."""
        slot = np.flatnonzero(self.prompt == MEDIA)
        items = []
        for i in range(len(self.answers) if count is None else count):
            answer = self.answers[i % len(self.answers)]
            tokens = self.prompt if target == "paper" else np.concatenate([self.prompt, answer])
            first = 1 if target == "paper" else len(self.prompt)
            items.append(ReplayItem(i, f"image-{i}", tokens, slot, np.arange(first, len(tokens))))
        return ReplaySource(
            point="adapter_output",
            width=self.shape.hidden,
            items=tuple(items),
            left_out=(),
            rows=lambda item: self.stored[item.index % len(self.stored)],
            target="paper" if target == "paper" else "answer",
            name="synthetic",
            content_hash="",
            labels={},
        )

    def inputs(self, index: int) -> dict[str, torch.Tensor]:
        """What the scripts' preprocess gives for one image."""
        ids = torch.from_numpy(self.prompt)[None].to(self.pixels.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": self.pixels[index : index + 1],
        }

    @property
    def adapter(self) -> torch.nn.Module:
        """The projector."""
        assert self.loaded.structure is not None
        return self.loaded.model.get_submodule(str(self.loaded.structure.adapter))


def material(shape: Shape, device: str, dtype: torch.dtype, count: int) -> Material:
    loaded = build(shape, device, dtype)
    rng = np.random.default_rng(0)
    question = rng.integers(3, MEDIA, shape.question)
    prompt = np.concatenate([[BOS], np.full(shape.rows, MEDIA), question]).astype(np.int64)
    answers = rng.integers(3, MEDIA, (count, shape.answer)).astype(np.int64)
    generator = torch.Generator(device).manual_seed(1)
    side = shape.image
    pixels = torch.randn((count, 3, side, side), device=device, generator=generator).to(dtype)
    empty = torch.empty(0)
    made = Material(loaded, shape, pixels, prompt, answers, empty)
    stored = []
    with torch.no_grad(), _hooked(made.adapter, lambda z: stored.append(z.detach().cpu()) or z):
        for i in range(count):
            loaded.model(**made.inputs(i))
    z = torch.cat(stored)
    kept = z if dtype == torch.float32 else z.to(torch.float16)
    return Material(loaded, shape, pixels, prompt, answers, kept)


@contextmanager
def _hooked(module: torch.nn.Module, fn: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _, args, out: fn(out))
    try:
        yield
    finally:
        handle.remove()


def _log_q(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The scripts' mean log-probability of every token of the prompt."""
    shifted, labels = logits.float()[:, :-1].contiguous(), ids[:, 1:].contiguous()
    picked = torch.log_softmax(shifted, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    valid = labels >= 0
    return (picked * valid.float()).sum() / valid.sum()


def script_gradient(made: Material, index: int, U: torch.Tensor) -> tuple[float, np.ndarray[Any, Any]]:
    """(norm, |projections of the mean gradient|) as the scripts compute them, one sample."""
    model, inputs = made.loaded.model, made.inputs(index)
    kept: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _hooked(made.adapter, lambda z: kept.update(z=z)):
        model(**inputs)
    z = kept["z"].detach().clone().float().requires_grad_(True)
    # the tight check is in fp32 on both sides: autocast would round one of them to bf16
    half = z.device.type == "cuda" and next(model.parameters()).dtype != torch.float32
    with _hooked(made.adapter, lambda _: z), torch.amp.autocast("cuda", dtype=torch.bfloat16, enabled=half):
        logits = model(**inputs).logits
    (g,) = torch.autograd.grad(_log_q(logits, inputs["input_ids"]), z)
    norm = g.float().norm().item()
    return norm, (g.float().squeeze(0).mean(dim=0) @ U).abs().cpu().numpy()


@torch.no_grad()
def script_losses(made: Material, index: int, bases: Sequence[torch.Tensor | None]) -> list[float]:
    """The scripts' loss of one sample under every condition: a whole forward each."""

    def removing(U: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda z: (z.float() - (z.float() @ U) @ U.T).to(z.dtype)

    found = []
    for U in bases:
        inputs = made.inputs(index)
        with _hooked(made.adapter, (lambda z: z) if U is None else removing(U)):
            logits = made.loaded.model(**inputs).logits
        found.append(-_log_q(logits, inputs["input_ids"]).item())
    return found


def conditions(made: Material, U: torch.Tensor) -> tuple[list[torch.Tensor | None], list[Any]]:
    """Bases of the four conditions, and the same as edits of a replay."""
    k = made.shape.modes
    bases: list[torch.Tensor | None] = [None, *(U[:, i * k : (i + 1) * k].contiguous() for i in range(3))]

    def edit(basis: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda z, owner: project_out(z, basis)

    return bases, [None if basis is None else edit(basis) for basis in bases]


def basis_of(made: Material) -> torch.Tensor:
    """Orthonormal directions [d, d]."""
    width = made.shape.hidden
    generator = torch.Generator(made.pixels.device).manual_seed(2)
    return torch.linalg.qr(torch.randn(width, width, device=made.pixels.device, generator=generator))[0]


def check(made: Material, count: int, *, tight: bool) -> dict[str, float]:
    """Largest relative differences of replay and scripts: norms, projections, losses, changes of loss."""
    U = basis_of(made)
    bases, edits = conditions(made, U)
    replay = Replay(made.loaded, made.source("paper", count), batch_size=max(2, count // 2))
    found = gradient_pass(replay, U.double().cpu().numpy(), keep=range(made.shape.hidden))
    losses = replay.losses(edits)
    norms, projected = zip(*(script_gradient(made, i, U) for i in range(count)), strict=True)
    theirs = np.array([script_losses(made, i, bases) for i in range(count)]).T
    scale = np.abs(np.array(projected)).mean()
    differences = {
        "norms": float(np.abs(found.norms / np.array(norms) - 1).max()),
        "projections": float(np.abs(found.kept_means - np.array(projected)).mean() / scale),
        "losses": float(np.abs(losses / theirs - 1).max()),
    }
    room = dict.fromkeys(differences, SMALL_TOLERANCE)
    if not tight:
        room = {"norms": NORM_TOLERANCE, "projections": np.inf, "losses": LOSS_TOLERANCE}
    wrong = {name: value for name, value in differences.items() if not value <= room[name]}
    if wrong:
        raise SystemExit(f"replay and scripts differ: {wrong}, allowed {room}; nothing was timed")
    return differences


def timed(call: Callable[[], Any], samples: int, repeats: int, warm: int = 1) -> Measured:
    """ms a sample (median of repeats after `warm` others) and the peak of the GPU's memory, GiB."""
    gpu = torch.cuda.is_available()
    took = []
    for turn in range(repeats + warm):
        if gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        if turn >= warm:
            took.append(1e3 * (time.perf_counter() - start) / samples)
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0
    return {"ms": statistics.median(took), "peak_gib": peak}


def timed_passes(
    call: Callable[[ReplaySource], Any], made: Material, target: str, size: int, count: int
) -> Measured:
    """A pass over `count` samples by `size`, after two over one batch, the second of which is timed too.

    Returns:
        ms a sample and `peak_gib` of the long pass; `fixed_ms` of a pass, `batch_ms` of every `size` samples more.
    """
    short = made.source(target, size)
    one = timed(lambda: call(short), 1, 1)["ms"]
    long = made.source(target, count)
    many = timed(lambda: call(long), count, 1, warm=0)
    batch = (many["ms"] * count - one) / (count / size - 1)
    return {**many, "samples": count, "batch_ms": batch, "fixed_ms": one - batch}


@contextmanager
def checkpointing(model: Any, *, training: bool) -> Iterator[None]:
    """As the script asks for it; it works in training mode only (the models have no dropout)."""
    inner = model.get_submodule("model.language_model") if hasattr(model, "model") else model
    model.gradient_checkpointing_enable()
    inner.train(training)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


def run(
    made: Material, sizes: dict[str, Sequence[int]], least: int, repeats: int, loop: int
) -> dict[str, Any]:
    """Everything that is timed: the loops on `loop` samples, replays by `sizes` of each target on `least` or more."""
    U = basis_of(made)
    modes = U.double().cpu().numpy()
    bases, edits = conditions(made, U)
    model = made.loaded.model
    out: dict[str, Any] = {"gradients": [], "ablation": []}

    def record(kind: str, provider: str, batch: int, measured: dict[str, Any], **facts: Any) -> None:
        entry = {"provider": provider, "batch": batch, **measured, **facts}
        out[kind].append(entry)
        print(json.dumps({"case": kind, **entry}), flush=True)

    def scripts() -> None:
        for i in range(loop):
            script_gradient(made, i, U[:, :100])

    with checkpointing(model, training=False):
        record("gradients", "published loop", 1, timed(scripts, loop, repeats), target="paper")
    with checkpointing(model, training=True):
        record(
            "gradients", "published loop, checkpointing at work", 1, timed(scripts, loop, 1), target="paper"
        )
    record(
        "ablation",
        "published loop",
        1,
        timed(lambda: [script_losses(made, i, bases) for i in range(loop)], loop, repeats),
        target="paper",
    )
    passes: dict[str, Callable[[Replay], Any]] = {
        "gradients": lambda replay: gradient_pass(replay, modes),
        "ablation": lambda replay: replay.losses(edits),
    }
    cases = [
        (target, size, fused)
        for target, chosen in sizes.items()
        for size in chosen
        for fused in ((True, False) if size == 8 and target == "answer" else (True,))
    ]
    for (target, size, fused), (kind, work) in product(cases, passes.items()):
        retried: list[int] = []

        def call(
            source: ReplaySource,
            size: int = size,
            fused: bool = fused,
            work: Any = work,
            retried: Any = retried,
        ) -> None:
            replay = Replay(made.loaded, source, batch_size=size, fused=fused)
            work(replay)
            retried += [n for _, n in replay.retried]

        count = -(-max(least, 4 * size) // size) * size
        both = timed_passes(call, made, target, size, count)
        record(kind, "replay", size, both, target=target, fused=fused, retried=retried)
    return out


def ratios(found: dict[str, Any]) -> list[str]:
    """Lines for people: the best of ours against each loop."""
    lines = []
    for kind, goal in (("gradients", 8.0), ("ablation", 3.2)):
        ours = [entry for entry in found[kind] if entry["provider"] == "replay"]
        for target in ("answer", "paper"):
            best = min((e for e in ours if e["target"] == target), key=lambda e: e["ms"])
            lines += [
                f"{kind}, {target} scored: {best['ms']:.1f} ms a sample at batch {best['batch']} "
                f"({best['peak_gib']:.1f} GiB), {loop['provider']} {loop['ms']:.1f}: "
                f"{loop['ms'] / best['ms']:.2f}x (goal {goal}x)"
                for loop in found[kind]
                if loop["provider"] != "replay"
            ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for replay.json")
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
    checks = {"small, fp32": check(material(SMALL, device, torch.float32, 6), 6, tight=True)}
    print(json.dumps(checks), flush=True)
    if options.small:
        made = material(SMALL, device, torch.float32, 8)
        found = run(made, {"answer": (1, 4), "paper": (4,)}, 8, repeats=1, loop=2)
    else:
        made = material(LARGE, device, torch.bfloat16, 24)
        checks["7B shape, bf16"] = check(made, 4, tight=False)
        print(json.dumps(checks), flush=True)
        found = run(made, {"answer": (1, 4, 8, 16, 24), "paper": (8, 24)}, 64, repeats=2, loop=4)
    lines = ratios(found)
    print("\n".join(lines))
    body = {
        "environment": {
            **environment("cuda" if gpu else "cpu", options.commit),
            "transformers": hf.__version__,
        },
        "shape": vars(made.shape),
        "checks": checks,
        **found,
        "summary": lines,
        "seconds": time.perf_counter() - began,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "replay.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
