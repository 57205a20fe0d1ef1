"""The paper's grid of probes against the obvious scikit-learn loop: `python -m bench.probe --out DIR`.

The grid is 4 hook points x 3 labels x 5 seeds on rows [2620, 4096] of 40 to 50 classes: lexical, speaker and a third
label, without calibration on both sides. The obvious loop is the paper's: split, StandardScaler, LogisticRegression,
one fit after the other. Both run to the same tolerance, then to the optimum. `--loop` and `--cells` measure a part
and scale it; the result says which part was measured. The gate comes first: same optimum as scikit-learn in fp64 to
1e-6 and the same accuracy within a test sample.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modegap.analyses.probe import ProbeConfig
from modegap.analyses.probe.fit import Drawn, Labelled, Scores, fit_point

from .environment import environment

POINTS, LABELS, SEEDS = 4, (50, 40, 40), (42, 43, 44, 45, 46)
SIGNAL = (0.35, 0.5, 0.25)  # of the class centres: read with .73, .97 and .43 at the optimum


def rows(
    n: int, width: int, seed: int, known: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows with a steep spectrum, as pooled hidden states have, and labels that are read in part.

    Labels of another hook point's rows (`known`) are these rows' too.
    """
    rng = np.random.default_rng(seed)
    latent = 256
    scales = np.geomspace(8, 0.2, latent).astype(np.float32)
    z = rng.standard_normal((n, latent), dtype=np.float32)
    labels = []
    for i, classes in enumerate(LABELS):
        codes = np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, n - 2 * classes)]
        codes = known[i] if known else rng.permutation(codes)
        z += SIGNAL[i] * rng.standard_normal((classes, latent), dtype=np.float32)[codes]
        labels.append(codes)
    mixing = rng.standard_normal((latent, width), dtype=np.float32) * scales[:, None]
    x = z @ mixing + rng.standard_normal((n, width), dtype=np.float32)
    return x, labels


def obvious(x: np.ndarray, codes: np.ndarray, seeds: tuple[int, ...], tol: float) -> list[float]:
    """Test accuracy of every seed, one fit after the other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    found = []
    for seed in seeds:
        a, b, own, other = train_test_split(x, codes, test_size=0.2, stratify=codes, random_state=seed)
        scaler = StandardScaler()
        model = LogisticRegression(C=1.0, tol=tol, max_iter=3000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(scaler.fit_transform(a), own)
        found.append(float((model.predict(scaler.transform(b)) == other).mean()))
    return found


def gate(device: str | None) -> dict[str, float]:
    """Worst relative excess of the training loss over scikit-learn's in fp64, and test samples between both."""
    import torch
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from modegap.analyses.probe.lbfgs import minimise
    from modegap.analyses.probe.problems import Problem

    x, labels = rows(260, 320, 9)
    excess, apart = 0.0, 0.0
    for codes in (labels[1], labels[0] % 5, labels[1] % 2):
        z = StandardScaler().fit_transform(x[:200])
        tested = (x[200:] - x[:200].mean(0)) / x[:200].std(0)
        classes = int(codes.max()) + 1
        on = torch.from_numpy(z).to(device or "cpu")
        problem = Problem(on, codes[:200], classes, 1.0, gram=on @ on.T)
        found = minimise([problem], tol=1e-7, max_iter=5000)[0]
        weights = problem.primal(found.coefficients).double().cpu().numpy().T
        shift = found.intercept.double().cpu().numpy()
        model = LogisticRegression(tol=1e-9, max_iter=20000).fit(z.astype(np.float64), codes[:200])
        theirs, intercept = model.coef_.T, model.intercept_
        if classes == 2:
            theirs, intercept = np.c_[0 * theirs, theirs], np.r_[0, intercept]
        losses = []
        for w, b in ((weights, shift), (theirs, intercept)):
            log_p = log_softmax(z.astype(np.float64) @ w + b, axis=1)
            losses.append(-log_p[np.arange(200), codes[:200]].sum() + (w**2).sum() / 2)
        excess = max(excess, abs(losses[0] / losses[1] - 1))
        right = [
            ((tested @ w + b).argmax(1) == codes[200:]).sum()
            for w, b in ((weights, shift), (theirs, intercept))
        ]
        apart = max(apart, abs(float(right[0] - right[1])))
    if excess > 1e-6 or apart > 1:
        raise SystemExit(f"gate: loss {excess:.2g} apart (at most 1e-6), {apart:g} test samples (at most 1)")
    return {"loss": excess, "samples": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device")
    parser.add_argument("--rows", type=int, default=2620)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--points", type=int, default=POINTS, help="hook points that ours measures")
    parser.add_argument(
        "--loop", type=int, default=5, help="seeds of each label that the loop measures, at one point"
    )
    parser.add_argument("--tol", type=float, nargs="+", default=[1e-4, 1e-6])
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    passed = gate(args.device)
    result: dict[str, Any] = {
        "case": f"{POINTS} hook points x {len(LABELS)} labels x {len(SEEDS)} seeds, {args.rows} x {args.width}",
        "classes": LABELS,
        "gate": passed,
        "scaled": "times of the parts measured, multiplied up to the grid",
        "tolerances": [],
        "environment": environment(
            "cuda" if (args.device or "").startswith("cuda") else "cpu", args.commit or None
        ),
    }
    name = "probe_cuda.json" if (args.device or "").startswith("cuda") else "probe.json"
    if (args.out / name).exists():  # other tolerances measured before
        earlier = json.loads((args.out / name).read_text())["tolerances"]
        result["tolerances"] = [entry for entry in earlier if entry["tol"] not in args.tol]
    for tol in args.tol:
        result["tolerances"].append(measure(args, tol))
        print(json.dumps({k: v for k, v in result["tolerances"][-1].items() if k != "cells"}), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / name).write_text(json.dumps(result, indent=2) + "\n")


def measure(args: argparse.Namespace, tol: float) -> dict[str, Any]:
    """Seconds of both for the grid at one tolerance, and the accuracies side by side."""
    config = ProbeConfig(seeds=SEEDS, tol=tol, device=args.device, calibration=0, max_iter=3000)
    every = np.arange(args.rows)
    x, labels = rows(args.rows, args.width, 0)
    cells = [Labelled(every, codes) for codes in labels]
    small = rows(300, 64, 0)[0]
    list(fit_point(small, [Labelled(every[:300], np.arange(300) % 3)], config))  # imports
    if config.on_device:
        list(fit_point(x, cells, config))  # libraries, memory pool
    seconds, scores = [], []
    drawn: Drawn = {}
    for point in range(args.points):
        if (
            point
        ):  # rows that hold the labels: on labels of other rows L-BFGS takes 20 to 30 times the iterations
            x, _ = rows(args.rows, args.width, point, labels)
        begun = time.perf_counter()
        fits = list(fit_point(x, cells, config, drawn))
        seconds.append(time.perf_counter() - begun)
        scores.append([fit.scores for fit in fits])
    x, _ = rows(args.rows, args.width, 0)
    seeds, loop, compared = SEEDS[: args.loop], [], []
    for codes, ours in zip(labels, scores[0], strict=True):
        begun = time.perf_counter()
        theirs = obvious(x, codes, seeds, tol)
        loop.append((time.perf_counter() - begun) / len(seeds))
        compared.append(_side_by_side(theirs, ours))
    ours_total = statistics.fmean(seconds) * POINTS
    loop_total = sum(loop) * len(SEEDS) * POINTS
    return {
        "tol": tol,
        "seconds": {"modegap": ours_total, "loop": loop_total},
        "ratio": loop_total / ours_total,
        "a fit": {
            "modegap": ours_total / (POINTS * len(LABELS) * len(SEEDS)),
            "loop": statistics.fmean(loop),
        },
        "cells": compared,
        "seconds a hook point": seconds,
        "of the labels at each hook point": {
            name: [[statistics.fmean(getattr(s, name) for s in cell) for cell in point] for point in scores]
            for name in ("accuracy", "iterations")
        },
        "measured": {
            "modegap": f"{args.points} of {POINTS} hook points",
            "loop": f"{args.loop} seeds a label at 1 point",
        },
    }


def _side_by_side(theirs: list[float], ours: tuple[Scores, ...]) -> dict[str, Any]:
    gaps = [abs(a - s.accuracy) * s.n_test for a, s in zip(theirs, ours, strict=False)]
    return {
        "accuracy": {"modegap": [s.accuracy for s in ours], "loop": theirs},
        "test samples apart": gaps,
        "iterations": [s.iterations for s in ours],
        "gradient in fp64": ours[0].audit,
    }


if __name__ == "__main__":
    main()
