"""Covariance of a store larger than a cache: wall time and peak memory beside the obvious numpy loop.

    python -m bench.out_of_core --dir SCRATCH [--rows 393216] [--width 4096] [--rounds 3]

Cases run in turn, every one in a process of its own, `--rounds` times: the ratios are of neighbours in time.

- modegap: `reduce(store, point, Moments())`, mode precise.
- numpy, zarr: x = chunk.astype(float32); s += x.sum(0); C += x.T @ x, 4,096 rows at a time, through zarr-python.
- numpy, store: the same loop through this store's own reader.
- align: `align` over two such stores, for its peak memory.

Errors are max |S_ij - S64_ij| / sqrt(S64_ii S64_jj) over 64 seeded channels and the massive ones, S64 from the
same rows in fp64. Writes bench/results/out_of_core.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# The heavy imports are inside the cases: a child's ru_maxrss starts from its parent's resident size.

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 4096
AUDITED = 64
SEEDS = (0, 1)
TARGET_RATIO = 0.70
TARGET_RSS_GB = 1.6
LOOPS = ("numpy, zarr", "numpy, store")


def modegap(modal: Path, _: Path) -> tuple[dict[str, Any], np.ndarray]:
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce
    from modegap.stores import ActivationStore

    from .synthetic import POINT

    begin = _clock()
    result = reduce(ActivationStore.open(modal), POINT, Moments(audit_columns=AUDITED))
    facts = {"audit_error": result.audit_error, "kernels": result.certificate.to_json()["kernel_paths"]}
    return {**_elapsed(begin), **facts}, result.covariance.numpy()


def numpy_zarr(modal: Path, _: Path) -> tuple[dict[str, Any], np.ndarray]:
    import zarr

    from .synthetic import POINT

    begin = _clock()
    rows = zarr.open_group(modal, mode="r")[f"points/{POINT}/rows"]
    covariance = _loop(rows.shape, lambda lo, hi: rows[lo:hi])
    return _elapsed(begin), covariance


def numpy_store(modal: Path, _: Path) -> tuple[dict[str, Any], np.ndarray]:
    from modegap.stores import ActivationStore

    from .synthetic import POINT

    begin = _clock()
    rows = ActivationStore.open(modal).rows(POINT)
    covariance = _loop(rows.shape, rows.read)
    return _elapsed(begin), covariance


def aligned(modal: Path, text: Path) -> tuple[dict[str, Any], None]:
    from modegap.analyses.align import align
    from modegap.stores import ActivationStore

    from .synthetic import POINT

    begin = _clock()
    modes = align(ActivationStore.open(modal), text=ActivationStore.open(text), point=POINT, text_point=POINT)
    return {**_elapsed(begin), "rank": modes.rank}, None


CASES: dict[str, Callable[[Path, Path], tuple[dict[str, Any], Any]]] = {
    "modegap": modegap,
    "numpy, zarr": numpy_zarr,
    "numpy, store": numpy_store,
    "align": aligned,
}


def _loop(shape: tuple[int, ...], read: Callable[[int, int], Any]) -> np.ndarray:
    """The obvious covariance: fp32 sums over all rows."""
    import numpy as np

    n, d = shape
    total, gram = np.zeros(d, np.float32), np.zeros((d, d), np.float32)
    for lo in range(0, n, CHUNK):
        x = read(lo, min(lo + CHUNK, n)).astype(np.float32)
        total += x.sum(0)
        gram += x.T @ x
    mean = total / n
    gram -= n * np.outer(mean, mean)
    gram /= n - 1
    return gram


def _clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _elapsed(begin: tuple[float, float]) -> dict[str, Any]:
    wall, cpu = _clock()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_gb = peak * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {"wall_s": wall - begin[0], "cpu_s": cpu - begin[1], "peak_rss_gb": peak_gb}


def _error(covariance: np.ndarray, modal: Path) -> float:
    """Largest error of the audited channels against fp64, from a second pass over the rows."""
    import torch

    from modegap.engine.moments.audit import audit_error, audited
    from modegap.stores import ActivationStore

    from .synthetic import POINT, Law

    rows = ActivationStore.open(modal).rows(POINT)
    massive = torch.from_numpy(Law.draw(rows.shape[1], SEEDS[0]).massive())
    index = torch.cat([audited(rows.shape[1], AUDITED, 0), massive]).unique()
    columns = torch.empty((rows.shape[0], len(index)), dtype=torch.float64)
    for k in range(rows.n_chunks):
        start, values, scale = rows.chunk(k)
        columns[start : start + len(values)] = torch.from_numpy(values[:, index.numpy()]).double() * scale
    exact = torch.cov(columns.T)
    found = torch.from_numpy(covariance[index][:, index]).double()
    return audit_error(found, exact.diagonal(), exact.diagonal(), exact)


def _child(name: str, modal: Path, text: Path) -> None:
    facts, covariance = CASES[name](modal, text)
    if covariance is not None:
        facts["error"] = _error(covariance, modal)
    print(json.dumps(facts))


def _run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else [])
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    model = models[0] if models else platform.processor()
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory, 1), "system": platform.system()}


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _medians(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    out = {}
    for name in dict.fromkeys(record["case"] for record in records):
        mine = [record for record in records if record["case"] == name]
        keys = [key for key in ("wall_s", "cpu_s", "peak_rss_gb", "error") if key in mine[0]]
        out[name] = {key: statistics.median(record[key] for record in mine) for key in keys}
    return out


def _ratios(records: Sequence[dict[str, Any]], loop: str) -> list[float]:
    """modegap's wall time over the loop's, of each round."""
    wall = {(record["case"], record["round"]): record["wall_s"] for record in records}
    rounds = sorted(r for case, r in wall if case == "modegap")
    return [wall["modegap", r] / wall[loop, r] for r in rounds]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dir", type=Path, required=True, help="scratch folder for the stores; they are kept"
    )
    parser.add_argument("--rows", type=int, default=393_216)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "out_of_core.json")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    stores = [options.dir.resolve() / f"{options.rows}x{options.width}-{seed}.zarr" for seed in SEEDS]
    if options.case:
        _child(options.case, *stores)
        return
    options.dir.mkdir(parents=True, exist_ok=True)
    size = ["--rows", str(options.rows), "--width", str(options.width)]
    for seed, store in zip(SEEDS, stores, strict=True):
        print(_run("bench.synthetic", *size, "--out", str(store), "--seed", str(seed)), end="")
    records = []
    for turn in range(options.rounds):
        for name in [*LOOPS, "modegap"] + (["align"] if turn == 0 else []):
            output = _run("bench.out_of_core", *size, "--dir", str(options.dir.resolve()), "--case", name)
            record = {"case": name, "round": turn, **json.loads(output.splitlines()[-1])}
            records.append(record)
            shown = {k: f"{v:.3g}" for k, v in record.items() if isinstance(v, float)}
            print(f"round {turn} {name:13}", " ".join(f"{k}={v}" for k, v in shown.items()), flush=True)
    ratios = {loop: statistics.median(_ratios(records, loop)) for loop in LOOPS}
    medians = _medians(records)
    for loop, ratio in ratios.items():
        print(f"modegap / {loop}: {ratio:.2f} (target at most {TARGET_RATIO})")
    print(f"align: {medians['align']['peak_rss_gb']:.2f} GB at peak (target under {TARGET_RSS_GB})")
    body = {
        "rows": options.rows,
        "width": options.width,
        "machine": _machine(),
        "versions": _versions(),
        "commit": _commit(),
        "ratios": ratios,
        "medians": medians,
        "targets": {"ratio": TARGET_RATIO, "align_peak_rss_gb": TARGET_RSS_GB},
        "records": records,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=1) + "\n")


def _versions() -> dict[str, str]:
    from modegap.engine.certificate import versions

    return versions()


if __name__ == "__main__":
    main()
