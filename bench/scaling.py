"""How a covariance scales over worker processes, and over GPUs of one host.

    python -m bench.scaling --dir SCRATCH [--rows 393216] [--width 4096] [--rounds 1]
    python -m bench.scaling --dir SCRATCH --gpus [--work covariance,capture,tokens] [--rows 1048576]

On the host: one process of one thread, held to one core, against two Dask workers of one thread each, over the same
store (3.2 GB by default, written first and kept), in turn; starting the workers is timed apart. The scheduler is a
process of its own, whose sockets are counted. Both covariances must agree to 1e-10.

With --gpus: weak scaling from one GPU to two, each with as much work as the one.

covariance  (scaling_gpus.py) of a store in the page cache, 8.6 GB a GPU, by torchrun (`engine.parallel`) and by Dask
            with a worker process a GPU; where the time of a pass goes, what it costs whatever its rows, and how the
            host's own reads scale
capture     (scaling_capture.py) of a model of LLaVA-1.5-7B's shape by torchrun, pooled rows at four points
tokens      the same with token rows at two points: 4.9 GB a GPU to write

Writes bench/results/scaling.json, or scaling_gpu.json, scaling_gpu_capture.json and scaling_gpu_tokens.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .environment import environment
from .scaling_capture import CASES, by_captures
from .scaling_gpus import by_gpus
from .synthetic import POINT, write

ROOT = Path(__file__).resolve().parent.parent
GOAL, GOAL_TRAFFIC = 1.6, 0.01
TOLERANCE = 1e-10
WORK = ",".join(("covariance", *CASES))
FILES = {
    "processes": "scaling",
    "covariance": "scaling_gpu",
    **{name: f"scaling_gpu_{name}" for name in CASES},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="where the store is, or is made")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, help="1 unless given; with --gpus 7, of captures 2")
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--work", help=f"with --gpus: some of {WORK}, all of them unless given")
    parser.add_argument("--samples", type=int, help="with --gpus: samples that a GPU captures")
    parser.add_argument("--device", default="cuda", help="with --gpus; cpu tries the code out")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the result")
    parser.add_argument("--commit", help="what is measured, where git does not tell")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.alone:
        return alone(Path(options.alone), options.dir)
    if options.share:
        return share(options)
    work = (options.work or WORK).split(",")
    if unknown := set(work) - set(WORK.split(",")):
        parser.error(f"--work: got {', '.join(sorted(unknown))}, expected some of {WORK}")
    if options.gpus and options.device == "cuda":
        import torch

        if torch.cuda.device_count() < 2:
            parser.error(
                f"--gpus needs two GPUs, got {torch.cuda.device_count()}; --device cpu tries the code out"
            )
    options.dir.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    found = by_gpu_work(options, work) if options.gpus else {"processes": by_processes(options)}
    on = environment("cuda" if options.gpus and options.device == "cuda" else "cpu", options.commit)
    for name, one in found.items():
        file = options.out / f"{FILES[name]}.json"
        file.write_text(json.dumps({**one, "environment": on}, indent=2) + "\n")
        print(json.dumps(one, indent=2))
        print(file)
    if differing := [name for name, one in found.items() if not one["agrees"]]:
        sys.exit(f"the results differ: {', '.join(differing)}")


def by_gpu_work(options: argparse.Namespace, work: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each part of the work that was asked for."""
    found = {}
    if captures := [name for name in CASES if name in work]:
        found.update(by_captures(options, _env(), captures))
    if "covariance" in work:
        found["covariance"] = by_gpus(options, _env(), TOLERANCE)
    return found


def share(options: argparse.Namespace) -> None:
    """What each of torchrun's two processes does; the first one leaves what was found."""
    import torch

    from modegap.engine.parallel import launched

    from . import scaling_capture, scaling_gpus

    with launched() as ranks:
        if ranks is None:
            raise SystemExit("--share is for a process that torchrun has started")
        if options.share == "covariance":
            found = scaling_gpus.share(options, ranks)
        else:
            found = scaling_capture.share(options, ranks, options.share.split(","))
        if ranks.first:
            torch.save(found, options.dir)


def by_processes(options: argparse.Namespace) -> dict[str, Any]:
    """One single-threaded process against two workers."""
    from modegap.engine.cluster import connect, plan_reduction
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce

    rows = options.rows or 393_216
    path = options.dir / f"scaling-{rows}x{options.width}.zarr"
    store = write(path, rows, options.width)
    nbytes = rows * options.width * 2
    seconds: dict[str, list[float]] = {"one process": [], "two workers": []}
    cpu: dict[str, list[float]] = {"one process": [], "two workers": []}
    traffic: list[int] = []
    gap = 0.0
    with ExitStack() as stack:
        begin = time.perf_counter()
        address = stack.enter_context(scheduler())
        for _ in range(2):
            stack.enter_context(worker(address))
        cluster = stack.enter_context(connect(address))
        while len(cluster.workers()) < 2:
            time.sleep(0.1)
        cluster.ready()
        reduce(store, POINT, Moments(), stop=4096, cluster=cluster)  # imports
        started = time.perf_counter() - begin
        for _ in range(options.rounds or 1):
            found, took, worked = one_process(path, options.dir)
            seconds["one process"].append(took)
            cpu["one process"].append(worked)
            before, idle = cluster.traffic(), _cpu(cluster)
            begin = time.perf_counter()
            result = reduce(store, POINT, Moments(), cluster=cluster)
            seconds["two workers"].append(time.perf_counter() - begin)
            after = cluster.traffic()
            cpu["two workers"].append(_cpu(cluster) - idle)
            traffic.append(sum(after.values()) - sum(before.values()))
            covariance = result.covariance.numpy()
            gap = max(gap, float(np.abs(covariance - found).max() / np.abs(found).max()))
    ratio = statistics.median(seconds["one process"]) / statistics.median(seconds["two workers"])
    share = max(traffic) / nbytes
    planned = plan_reduction(rows, options.width, workers=2, rate=nbytes / seconds["one process"][0])
    return {
        "rows": rows,
        "width": options.width,
        "bytes": nbytes,
        "seconds": seconds,
        "cpu seconds": cpu,
        "start of scheduler, workers and imports, seconds": started,
        "ratio": ratio,
        "goal": GOAL,
        "scheduler bytes": traffic,
        "scheduler share of bytes read": share,
        "goal share": GOAL_TRAFFIC,
        "largest relative difference": gap,
        "agrees": gap <= TOLERANCE,
        "met": ratio >= GOAL and share < GOAL_TRAFFIC,
        "planned": planned.to_json(),
        "planned for 1,000 shards and 64 workers": plan_reduction(
            1000 * 32768, options.width, workers=64, shards=1000
        ).to_json(),
    }


def _cpu(cluster: Any) -> float:
    return float(sum(one["cpu_seconds"] for one in cluster.facts().values()))


def one_process(path: Path, folder: Path) -> tuple[np.ndarray, float, float]:
    """The covariance by one process with one thread on one core, and its seconds of time and of the core."""
    out = folder / "one-process.npz"
    subprocess.run(
        [sys.executable, "-m", "bench.scaling", "--alone", str(path), "--dir", str(out)],
        env=_env(),
        check=True,
    )
    with np.load(out) as found:
        result = found["covariance"], float(found["seconds"]), float(found["cpu"])
    out.unlink()
    return result


def alone(path: Path, out: Path) -> None:
    """What the one process does."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce
    from modegap.stores import ActivationStore

    store = ActivationStore.open(path)
    reduce(store, POINT, Moments(), stop=4096)
    begin, cpu = time.perf_counter(), time.process_time()
    result = reduce(store, POINT, Moments(), readers=1)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    np.savez(out, covariance=result.covariance.numpy(), seconds=seconds, cpu=cpu)


@contextmanager
def scheduler() -> Iterator[str]:
    """A scheduler in a process of its own; its address."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        with _started("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                      "--scheduler-file", str(file)):  # fmt: skip
            end = time.monotonic() + 60
            while time.monotonic() < end:
                try:
                    yield json.loads(file.read_text())["address"]
                    return
                except (OSError, json.JSONDecodeError):
                    time.sleep(0.1)
            sys.exit("the scheduler did not start")


@contextmanager
def worker(address: str) -> Iterator[None]:
    """A worker process of one thread."""
    words = ("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "6GB")
    with _started(*words):
        yield


@contextmanager
def _started(kind: str, *words: str) -> Iterator[None]:
    from modegap.engine.cluster.processes import environment as settings

    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words]
    env = {**_env(), **settings(), "DASK_LOGGING__DISTRIBUTED": "error"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _env() -> dict[str, str]:
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    main()
