"""A synthetic activation store of any size: graded spectrum, correlated channels, massive channels, seeded.

    python -m bench.synthetic --rows 393216 --width 4096 --out x.zarr

Row i is z_i * s + f_i F + m: s grades the channels over three decades, a few shared factors f correlate them,
and m holds massive channels with a mean of 60 standard deviations, as hidden states of language models have.
Every sample draws from its own generator, so a store can be resumed, and any part of it rewritten, with the
same values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

POINT = "adapter_output"
FACTORS = 8
MASSIVE = 16
MASSIVE_RATIO = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Law:
    """Parameters of the rows' distribution: spread [d], mean [d], factors [FACTORS, d], all float32."""

    spread: np.ndarray
    mean: np.ndarray
    factors: np.ndarray

    @classmethod
    def draw(cls, width: int, seed: int) -> Law:
        """The law of a width and a seed."""
        rng = np.random.default_rng([seed, width])
        spread = 10.0 ** rng.permutation(np.linspace(-2.0, 1.0, width))
        mean = 0.3 * spread * rng.standard_normal(width)
        massive = rng.choice(width, min(MASSIVE, width), replace=False)
        mean[massive] = MASSIVE_RATIO * spread[massive] * rng.choice([-1.0, 1.0], len(massive))
        factors = 0.3 * spread * rng.standard_normal((FACTORS, width))
        return cls(*(np.asarray(part, dtype=np.float32) for part in (spread, mean, factors)))

    def massive(self) -> np.ndarray:
        """Indices of the massive channels."""
        return np.flatnonzero(np.abs(self.mean) > 0.5 * MASSIVE_RATIO * self.spread)

    def rows(self, count: int, seed: int, sample: int) -> np.ndarray:
        """The rows of one sample, float32 [count, d]."""
        rng = np.random.Generator(np.random.SFC64([seed, sample]))
        out = rng.standard_normal((count, len(self.spread)), dtype=np.float32)
        out *= self.spread
        out += rng.standard_normal((count, FACTORS), dtype=np.float32) @ self.factors
        out += self.mean
        return out


def write(path: Path, rows: int, width: int, *, seed: int = 0, sample_rows: int = 512) -> ActivationStore:
    """Write (or resume) a store of `rows` token rows, in samples of `sample_rows`; returns it."""
    lengths = np.full(-(-rows // sample_rows), sample_rows, dtype=np.int64)
    lengths[-1] = rows - sample_rows * (len(lengths) - 1)
    plan = StorePlan(
        points={POINT: PointPlan(width, "tokens", lengths, stream="adapter")},
        sample_ids=[f"{i:07d}" for i in range(len(lengths))],
        labels={"group": [int(i) % 10 for i in range(len(lengths))]},
        provenance={"generator": "bench.synthetic", "seed": seed},
    )
    store = ActivationStore.create(path, plan, exist_ok=True)
    law = Law.draw(width, seed)
    with store.writer() as writer:
        for sample in writer.todo.tolist():
            values = law.rows(int(lengths[sample]), seed, sample).astype(np.float16)
            ids = np.arange(len(values), dtype=np.int32)
            modality = np.full(len(values), 2, dtype=np.uint8)
            writer.put(sample, {POINT: SampleRows(tokens=values)}, {"adapter": (ids, modality)})
    return ActivationStore.open(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="write a synthetic activation store")
    parser.add_argument("--rows", type=int, default=393_216)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample-rows", type=int, default=512)
    options = parser.parse_args(argv)
    if options.rows < 1 or options.width < 1 or options.sample_rows < 1:
        parser.error("rows, width and sample-rows must be positive")
    store = write(
        options.out, options.rows, options.width, seed=options.seed, sample_rows=options.sample_rows
    )
    print(f"{options.out}: {store.rows(POINT).shape[0]} rows of {options.width}, seed {options.seed}")


if __name__ == "__main__":
    main()
