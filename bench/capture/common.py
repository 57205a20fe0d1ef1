"""What the parts share: a tokenizer made in code, texts, clocks, memory."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = [f"w{i}" for i in range(200)]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def sync() -> None:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)


def tokenizer() -> Any:
    """A word tokenizer with a beginning-of-text token and an image placeholder; nothing is downloaded."""
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    ids = {word: index for index, word in enumerate([*SPECIAL, *WORDS, "Describe", "this", "image", "."])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def texts(count: int, shortest: int, longest: int, seed: int = 0) -> list[str]:
    """Random words, `shortest` to `longest` of them."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(shortest, longest + 1)))) for _ in range(count)]


@dataclass
class Watch:
    """A progress callback that keeps when each phase began and ended, and the memory held meanwhile."""

    every: int = 0
    begins: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    held: list[tuple[int, int]] = field(default_factory=list)
    _next: int = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.begins.setdefault(phase, now)
        self.ends[phase] = now
        if self.every and phase == "capture" and done >= self._next:
            self._next = done + self.every
            allocated = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
            self.held.append((allocated, resident()))

    def seconds(self, phase: str) -> float:
        return self.ends[phase] - self.begins[phase]


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls after one to warm up, the device idle before and after."""
    call()
    took = []
    for _ in range(repeats):
        sync()
        begin = time.perf_counter()
        call()
        sync()
        took.append(time.perf_counter() - begin)
    return took


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest distance of a row from the other's, over its norm."""
    gap = np.linalg.norm(ours.astype(np.float64) - theirs.astype(np.float64), axis=-1)
    return float((gap / np.linalg.norm(theirs.astype(np.float64), axis=-1)).max())


def pinned_rate(megabytes: int = 1024) -> float | None:
    """Bytes a second from pinned host memory to the GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    host = torch.empty(megabytes * 2**20, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    return host.numel() / statistics.median(timed(lambda: there.copy_(host, non_blocking=True), 5))
