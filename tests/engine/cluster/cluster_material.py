"""Stores and models that workers can be given."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import Moments
from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan
from modegap.stores.checksum import crc32c

ROOT = Path(__file__).resolve().parents[3]


def make_store(
    path: Path, *, samples: int = 40, width: int = 24, longest: int = 700, seed: int = 0, chunk: int = 16384
) -> ActivationStore:
    """Token and pooled rows with a massive channel and three modalities, in many small chunks."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, samples)
    plan = StorePlan(
        points={
            "adapter_output": PointPlan(width, "both", lengths, stream="adapter"),
            "llm_final": PointPlan(width, "both", lengths, stream="adapter"),
        },
        sample_ids=[f"s{i:03d}" for i in range(samples)],
        labels={
            "digit": [i % 3 for i in range(samples)],
            "color": ["red" if i % 2 else "blue" for i in range(samples)],
        },
        provenance={"seed": seed},
        chunk_bytes=chunk,
    )
    mean = np.zeros(width)
    mean[1], mean[5] = 300.0, -40.0
    mix = rng.standard_normal((width, width)) / np.sqrt(width)
    store = ActivationStore.create(path, plan)
    with store.writer() as writer:
        for i, n in enumerate(lengths.tolist()):
            x = rng.standard_normal((n, width)) @ mix + mean + 0.3 * (i % 3)
            y = np.tanh(x - mean) + 0.1 * rng.standard_normal((n, width))
            rows = {
                "adapter_output": SampleRows(x.astype(np.float16), x.mean(0).astype(np.float32)),
                "llm_final": SampleRows(y.astype(np.float16), y.mean(0).astype(np.float32)),
            }
            columns = (np.arange(n, dtype=np.int32), rng.integers(1, 4, n).astype(np.uint8))
            writer.put(i, rows, {"adapter": columns})
    return ActivationStore.open(path)


def poison(store: ActivationStore, point: str, row: int, channel: int) -> None:
    """Put a NaN where no writer would: into a chunk, with the checksums that belong to it."""
    rows = store.rows(point)
    chunk, at = divmod(row, rows.chunk_rows)
    array = next(a for a in store.arrays if (a.kind, a.owner) == ("tokens", point))
    file = Path(str(store.path)) / "points" / point / "rows" / "c" / str(chunk) / "0"
    content = bytearray(file.read_bytes())
    values = np.frombuffer(content, np.float16, rows.chunk_rows * rows.shape[1]).reshape(-1, rows.shape[1])
    values[at, channel] = np.nan
    checksum = crc32c(bytes(content[:-4]))
    content[-4:] = checksum.to_bytes(4, "little")
    file.write_bytes(content)
    record = replace(store.commits(array).record(chunk), crc32c=checksum)
    (Path(str(store.path)) / "_commit" / array.spec.path / f"{chunk}.json").write_bytes(record.dump())


class SlowMoments(Moments):
    """Takes long enough over a batch to be killed in the middle."""

    def update(self, batch: ActivationBatch) -> None:
        time.sleep(0.01)
        super().update(batch)


def importable() -> dict[str, str]:
    """Environment in which a child process imports modegap and these files."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])}
