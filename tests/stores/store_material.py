"""Deterministic stores for the tests: what a sample holds depends on its index and nothing else."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan, Writer, filling, runs, writer
from modegap.stores.plan import Profile

LENGTHS = np.array([3, 0, 7, 1, 12, 4, 4, 0, 9, 2, 5, 6, 1, 8, 3, 10, 2, 2, 7, 5])


def small_sizes(set_attribute: Callable[[object, str, int], None] = setattr) -> None:
    """Let rows of a few bytes go to the disk as large ones do: two or more at once, in pieces, beside a thread."""
    set_attribute(filling, "DIRECT", 16)
    set_attribute(runs, "PIECE", 24)
    set_attribute(writer, "_WORTH_SHARING", 64)


def small_plan(
    n: int = 20, chunk_bytes: int = 96, profile: Profile = "raw", **provenance: object
) -> StorePlan:
    """Points of different widths, token and pooled rows, two streams; chunks of a few rows."""
    lengths = np.resize(LENGTHS, n)
    return StorePlan(
        points={
            "llm_hidden_1": PointPlan(6, "both", lengths, stream="llm"),
            "llm_final": PointPlan(4, "tokens", lengths, stream="llm"),
            "adapter_output": PointPlan(5, "tokens", lengths + 2),
            "encoder_output": PointPlan(12, "pooled"),
            "wide": PointPlan(7, "both", lengths, dtype="float32", stream="llm"),
        },
        sample_ids=[f"sample-{i:03d}-é" for i in range(n)],
        labels={"class": ["cat", "dog"] * (n // 2), "score": [0.5 * i if i % 3 else None for i in range(n)]},
        provenance={"model": "tiny", **provenance},
        chunk_bytes=chunk_bytes,
        profile=profile,
        shard_bytes=3 * chunk_bytes,
    )


def values(point: str, kind: str, sample: int, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values, some of every few samples beyond the range of fp16; every third sample's are fp16."""
    seed = [zlib.crc32(f"{point}/{kind}".encode()), sample]
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if sample % 7 == 5 and point != "llm_final":
        return drawn * np.float32(2e5)
    return drawn.astype(np.float16) if sample % 3 == 2 else drawn


def sample_rows(plan: StorePlan, sample: int) -> dict[str, SampleRows]:
    """All rows of a sample."""
    rows = {}
    for name, point in plan.points.items():
        tokens = pooled = None
        if point.lengths is not None:
            tokens = values(name, "tokens", sample, (int(point.lengths[sample]), point.width))
        if point.rows != "tokens":
            pooled = values(name, "pooled", sample, (point.width,))
        rows[name] = SampleRows(tokens, pooled)
    return rows


def sample_columns(plan: StorePlan, sample: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ids and modality of a sample in every stream."""
    found = {}
    for name, lengths in plan.streams().items():
        positions = np.arange(lengths[sample])
        found[name] = (positions + 1000 * sample, (positions % 3 + 1).astype(np.uint8))
    return found


def fill(writer: Writer, plan: StorePlan, samples: Iterable[int] | None = None) -> None:
    """Put what is still to put, or the given samples."""
    for sample in writer.todo.tolist() if samples is None else samples:
        writer.put(sample, sample_rows(plan, sample), sample_columns(plan, sample))


def make_store(path: Path, plan: StorePlan) -> ActivationStore:
    """A complete store."""
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        fill(writer, plan)
    return store


def expected(plan: StorePlan, point: str, kind: str) -> np.ndarray:
    """The float32 rows that were put."""
    n = len(plan.sample_ids)
    rows = [sample_rows(plan, sample)[point] for sample in range(n)]
    if kind == "pooled":
        return np.stack([row.pooled for row in rows if row.pooled is not None])
    return np.concatenate([row.tokens for row in rows if row.tokens is not None])


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    names = (Path(folder) / name for folder, _, files in os.walk(root) for name in files)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in names}
