"""W1 with its bootstrap against the obvious loop: `python -m bench.distance --out DIR`.

The obvious loop is cdist and POT's `emd2` on every resample of the reduced rows. Both are exact; the gate is
that their resampled distances agree to 1e-9.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from modegap.analyses.distance import w1_bootstrap

from .environment import environment


def obvious(x: np.ndarray, y: np.ndarray, draws: int, seed: int) -> list[float]:
    """Resampled W1, one after the other."""
    import ot
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(seed)
    n, m = len(x), len(y)
    found = []
    for _ in range(draws):
        i, j = rng.integers(n, size=n), rng.integers(m, size=m)
        cost = cdist(x[i], y[j])
        found.append(float(ot.emd2(np.full(n, 1 / n), np.full(m, 1 / m), cost, numItermax=10_000_000)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scales = np.geomspace(10, 0.1, args.width)
    x = rng.standard_normal((args.rows, args.width)) * scales
    y = rng.standard_normal((args.rows, args.width)) * scales + 0.2
    times: dict[str, list[float]] = {"modegap": [], "obvious": []}
    w1_bootstrap(x[:9], y[:9], draws=1, level=0.95, seed=1, jobs=args.jobs)  # imports
    for _ in range(args.rounds):
        begun = time.perf_counter()
        ours = w1_bootstrap(x, y, draws=args.draws, level=0.95, seed=1, jobs=args.jobs)
        middle = time.perf_counter()
        theirs = obvious(x, y, args.draws, 1)
        times["modegap"].append(middle - begun)
        times["obvious"].append(time.perf_counter() - middle)
    ends = np.quantile(theirs, [0.025, 0.5, 0.975])
    gap = abs((ours.high - ours.low) - (ends[2] - ends[0])) / ends[1]
    if gap > 1e-9:
        raise SystemExit(f"the intervals differ by {gap:.2g} of the distance, expected at most 1e-9")
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "case": f"W1, {args.draws} resamples of {args.rows} rows a side, {args.width} dimensions",
        "jobs": args.jobs,
        "seconds": times,
        "median": medians,
        "ratio": medians["obvious"] / medians["modegap"],
        "gap": gap,
        "environment": environment("cpu", args.commit or None),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "distance.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("case", "median", "ratio", "gap")}, indent=2))


if __name__ == "__main__":
    main()
