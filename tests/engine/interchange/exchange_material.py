"""A store with everything that can be exchanged: both kinds of rows, two streams, token columns, labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modegap.stores import ActivationStore, LabelColumn, PointPlan, SampleRows, StorePlan
from modegap.stores.plan import Profile

N = 23
LENGTHS = np.resize([3, 0, 5, 1], N)


def full_plan(profile: Profile = "raw") -> StorePlan:
    return StorePlan(
        {
            "adapter_output": PointPlan(6, "both", LENGTHS + 1, stream="adapter"),
            "llm_hidden_1": PointPlan(4, "both", LENGTHS, stream="llm"),
            "llm_final": PointPlan(4, "tokens", LENGTHS, stream="llm", dtype="float32"),
            "encoder_output": PointPlan(3, "pooled"),
        },
        [f"id {i} é" for i in range(N)],
        labels={
            "emotion": LabelColumn("category", tuple("ab"[i % 2] for i in range(N))),
            "transcript": LabelColumn("text", tuple(None if i == 4 else f"text {i}\n☃" for i in range(N))),
            "score": LabelColumn("number", tuple(None if i == 3 else i / 2 for i in range(N))),
            "count": LabelColumn("number", tuple(range(N))),
        },
        provenance={"model": "tiny", "dataset": "made up", "config": {"layers": [1, 2]}},
        chunk_bytes=64,
        profile=profile,
        shard_bytes=192,
    )


def full_store(path: Path, profile: Profile = "raw") -> ActivationStore:
    plan = full_plan(profile)
    store = ActivationStore.create(path, plan)
    rng = np.random.default_rng(0)
    with store.writer() as writer:
        for i in range(N):
            rows = {}
            for name, point in plan.points.items():
                scale = 1e6 if name == "encoder_output" and i == 7 else 1
                tokens = None
                if point.lengths is not None:
                    tokens = rng.standard_normal((int(point.lengths[i]), point.width)).astype(np.float32)
                pooled = (
                    None
                    if point.rows == "tokens"
                    else (rng.standard_normal(point.width) * scale).astype(np.float32)
                )
                rows[name] = SampleRows(tokens, pooled)
            columns = {}
            for name, lengths in plan.streams().items():
                at = np.arange(lengths[i])
                columns[name] = (100 * i + at, (at % 4).astype(np.uint8))
            writer.put(i, rows, columns)
    return store


def values(store: ActivationStore, point: str, kind: str) -> np.ndarray:
    rows = store.rows(point, kind)  # type: ignore[arg-type]
    return rows.read(0, rows.shape[0])


def check_same(ours: ActivationStore, theirs: ActivationStore, kinds: tuple[str, ...]) -> None:
    """Ids, labels and rows of these kinds are equal; so are streams, token ids and modality."""
    assert ours.samples == theirs.samples
    assert ours.labels == theirs.labels
    for name, info in theirs.points.items():
        for kind in ("tokens", "pooled"):
            if kind in kinds and info.rows in (kind, "both"):
                np.testing.assert_array_equal(values(ours, name, kind), values(theirs, name, kind))
        if "tokens" in kinds and info.stream is not None:
            assert ours.points[name].stream == info.stream
            mine, other = ours.rows(name), theirs.rows(name)
            n = other.shape[0]
            np.testing.assert_array_equal(mine.lengths(), other.lengths())
            np.testing.assert_array_equal(mine.token_ids(0, n), other.token_ids(0, n))
            np.testing.assert_array_equal(mine.modality(0, n), other.modality(0, n))
