"""Retrains the whole lab from nothing: `python -m modegap.analyses.lab.train [--out DIR] [--seed 0]`.

The decoder on text and the two encoders, then the two adapters, then the headline numbers on held-out scans:
about 10 minutes on two quiet cores. Writes what `load(root=DIR)` reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

FILES = ("config.json", "tokenizer.json", "decoder.safetensors", "plain.safetensors", "aligned.safetensors")
# Two one-threaded processes beat two threads: matrices here are too small to share (on a busy machine a step
# took 3 times the CPU time with two), and one thread adds in one order: a rerun gives the same bytes.
WORKERS = 2
WAVES = (("decoder", "encoder/plain", "encoder/aligned"), ("adapter/aligned", "adapter/plain"))


def train(
    out: Path, seed: int = 0, steps_scale: float = 1.0, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains, scores and writes everything into `out`; returns what `lab.json` holds.

    `steps_scale` multiplies the steps of every stage: 0.01 is a smoke test, 1 the shipped recipe.
    """
    from .corpus import vocabulary
    from .models import VARIANTS, config_dict
    from .tokens import write_tokenizer

    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config_dict(len(vocabulary())), indent=1) + "\n")
    write_tokenizer(out / "tokenizer.json")
    figures: dict[str, dict[str, Any]] = {}
    # Spawned, not forked: a fork of a process whose torch already has threads can hang.
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for wave in (*WAVES, tuple(f"score/{variant}" for variant in VARIANTS)):
            jobs = {stage: pool.submit(run_stage, stage, out, seed, steps_scale) for stage in wave}
            for stage, job in jobs.items():
                figures[stage] = job.result()
                log(f"{stage}: {json.dumps(figures[stage])}")
    return write_facts(out, seed, steps_scale, figures, time.perf_counter() - start)


def write_facts(
    out: Path, seed: int, steps_scale: float, figures: dict[str, dict[str, Any]], wall: float | None
) -> dict[str, Any]:
    """Writes `lab.json` from the figures of every stage and the wall seconds, and returns what it holds."""
    cpu = {stage: found["cpu_seconds"] for stage, found in figures.items()}
    figures = {
        stage: {name: value for name, value in found.items() if name != "cpu_seconds"}
        for stage, found in figures.items()
    }
    for name in FILES:
        (out / name).chmod(0o644)  # safetensors writes for the owner alone
    facts = {
        "seed": seed,
        "steps_scale": steps_scale,
        "decoder": figures["decoder"],
        "variants": {
            variant: {
                "encoder_training_loss": figures[f"encoder/{variant}"]["training_loss"],
                "adapter_training_loss": figures[f"adapter/{variant}"]["training_loss"],
                **figures[f"score/{variant}"],
            }
            for variant in ("plain", "aligned")
        },
        "seconds": {"wall": wall, "cpu": sum(cpu.values()), "cpu_of_stage": cpu},
        "versions": _versions(),
        "files": file_hashes(out),
        "content_hash": content_hash(out),
    }
    (out / "lab.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def run_stage(stage: str, out: Path, seed: int, steps_scale: float) -> dict[str, Any]:
    """Runs one stage in this process on one thread, from and to the files in `out`; returns its figures."""
    import torch
    from safetensors.torch import load_file, save_file
    from threadpoolctl import threadpool_limits

    from . import models
    from .stage import halves

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    threadpool_limits(1)  # numpy's and scikit-learn's threads too
    log = partial(print, flush=True)
    cpu = time.process_time()
    kind, _, variant = stage.partition("/")
    values = json.loads((out / "config.json").read_text())
    if kind == "decoder":
        from . import train_decoder as work

        decoder, figures = work.train_decoder(values, seed, work.PLAN.scaled(steps_scale), log)
        save_file(halves(decoder), out / "decoder.safetensors")
    elif kind == "encoder":
        from . import train_encoder as vision

        encoder, figures = vision.train_encoder(
            variant, values, seed, vision.PLANS[variant].scaled(steps_scale), log
        )
        save_file(halves(encoder, "encoder."), out / f"{variant}.safetensors")
    elif kind == "adapter":
        from . import train_adapter as glue

        model = models.build_llava(values)
        tensors = load_file(out / f"{variant}.safetensors")
        models.fill_decoder(model, load_file(out / "decoder.safetensors"))
        models.fill_part(model, "encoder", tensors)
        figures = glue.train_adapter(variant, model, seed, glue.PLAN.scaled(steps_scale), log)
        tensors.update(halves(models.parts(model)["projector"], "projector."))
        save_file(tensors, out / f"{variant}.safetensors")
    else:
        from .scoring import score

        figures = score(*models.load(variant, root=out))
    return {**figures, "cpu_seconds": time.process_time() - cpu}


def headline(facts: dict[str, Any]) -> str:
    """The headline numbers, one a line; they depend on the weights only, not on the clock."""
    lines = [
        f"decoder: perplexity {facts['decoder']['perplexity']:.3f} a token, "
        f"digit of a scene in words {facts['decoder']['scene_digit_accuracy']:.1%}"
    ]
    for variant, found in facts["variants"].items():
        lines.append(
            f"{variant}: right digit on {found['digit_accuracy']:.1%} of {found['images']} held-out images, "
            f"caption loss {found['caption_loss']:.3f} nats a token"
        )
    return "\n".join(lines)


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that `load` reads."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def content_hash(folder: Path) -> str:
    """One SHA-256 over the files' hashes: the identity of the weights."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in file_hashes(folder).items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _versions() -> dict[str, str]:
    import numpy
    import sklearn
    import torch
    import transformers

    found = {module.__name__: str(module.__version__) for module in (numpy, sklearn, torch, transformers)}
    return {"python": sys.version.split()[0], **found}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 0."""
    parser = argparse.ArgumentParser(
        prog="python -m modegap.analyses.lab.train", description="Retrain the lab."
    )
    parser.add_argument("--out", type=Path, default=Path("modegap-lab"), help="folder to write (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every stage (%(default)s)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on all steps (%(default)s)")
    chosen = parser.parse_args(arguments)
    facts = train(chosen.out, chosen.seed, chosen.steps_scale, log=partial(print, flush=True))
    spent = facts["seconds"]
    print(headline(facts))
    print(f"trained in {spent['wall']:.0f} s ({spent['cpu']:.0f} CPU s); wrote {chosen.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
