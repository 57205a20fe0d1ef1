"""What the training stages share: seeds, batches of pixels, the optimizer loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .canvas import random_looks, render
from .scans import load_scans, split_indices


@dataclass(frozen=True, slots=True)
class Plan:
    """How one stage trains: optimizer steps, samples a step, peak learning rate, weight decay."""

    steps: int
    batch: int
    lr: float
    weight_decay: float = 0.05

    def scaled(self, factor: float) -> Plan:
        """The same plan with `factor` times as many steps."""
        return Plan(max(2, round(self.steps * factor)), self.batch, self.lr, self.weight_decay)


def stage_rng(seed: int, stage: str) -> np.random.Generator:
    """Seeds torch for a stage and returns numpy's generator for it; stages do not shift each other."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big")
    torch.manual_seed(number)
    return np.random.default_rng(number)


def pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """`pixel_values` float32 [n, 3, side, side] in [-1, 1]: what the processor makes of the same images."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def training_images(indices: NDArray[np.int64], rng: np.random.Generator) -> torch.Tensor:
    """Pixels of training scans, each under a fresh random look."""
    return pixels(render(load_scans()[0][indices], random_looks(len(indices), rng)))


def training_scans(batch: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Distinct scan indices of the training split."""
    return rng.choice(np.array(split_indices("train")), size=batch, replace=False)


def optimize(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    plan: Plan,
    loss_of_step: Callable[[int], torch.Tensor],
    log: Callable[[str], None],
) -> float:
    """AdamW with 5% warm-up and cosine decay; returns the mean loss of the last tenth of the steps."""
    chosen = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=plan.lr, weight_decay=plan.weight_decay, betas=(0.9, 0.98))
    warm = max(1, plan.steps // 20)
    losses: list[float] = []
    start, cpu = time.perf_counter(), time.process_time()
    for step in range(plan.steps):
        rate = min((step + 1) / warm, 0.5 + 0.5 * float(np.cos(np.pi * step / plan.steps)))
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * rate
        loss = loss_of_step(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, plan.steps // 10) == 0:
            seconds, work = time.perf_counter() - start, time.process_time() - cpu
            recent = float(np.mean(losses[-max(1, plan.steps // 10) :]))
            log(f"{name}: step {step + 1}/{plan.steps} loss {recent:.4f} ({seconds:.0f} s, CPU {work:.0f} s)")
    return float(np.mean(losses[-max(1, plan.steps // 10) :]))


@torch.no_grad()
def snap(module: torch.nn.Module) -> None:
    """Rounds every weight to float16 in place: what later stages and the headline see is what ships."""
    for parameter in module.parameters():
        parameter.copy_(parameter.half().float())


def halves(module: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The weights as float16, ready to save; `snap` rounded them, so nothing is lost."""
    return {f"{prefix}{name}": value.half().contiguous() for name, value in module.state_dict().items()}
