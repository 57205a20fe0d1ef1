"""How a covariance scales over worker processes, and over GPUs of one host.

    python -m bench.scaling --dir SCRATCH [--rows 393216] [--width 4096] [--rounds 1]
    python -m bench.scaling --dir SCRATCH --gpus [--rows 1048576]

On the host: one process of one thread, held to one core, against two Dask workers of one thread each, over the same
store (3.2 GB by default, written first and kept), in turn; starting the workers is timed apart. The scheduler is a
process of its own, whose sockets are counted. Both covariances must agree to 1e-10.

With --gpus: weak scaling from one GPU to two, every GPU over as many rows (8.6 GB) of a store in the page cache: by
torchrun (`engine.parallel`) and by Dask with one worker process a GPU; and what a pass costs whatever its rows.
Writes bench/results/scaling.json, or scaling_gpu.json.
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
from .synthetic import POINT, write

ROOT = Path(__file__).resolve().parent.parent
GOAL, GOAL_TRAFFIC, GOAL_WEAK = 1.6, 0.01, 1.85
TOLERANCE = 1e-10
_GPU_PASSES, _GPU_ROWS, _FEW_ROWS = 6, 1 << 20, 1 << 14


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="where the store is, or is made")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("--device", default="cuda", help="with --gpus; cpu tries the code out")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the result")
    parser.add_argument("--commit", help="what is measured, where git does not tell")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.alone:
        return alone(Path(options.alone), options.dir)
    if options.share:
        return share(Path(options.share), options.rows, options.device, options.dir)
    options.dir.mkdir(parents=True, exist_ok=True)
    found = by_gpus(options) if options.gpus else by_processes(options)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("scaling_gpu.json" if options.gpus else "scaling.json")
    file.write_text(
        json.dumps(
            {
                **found,
                "environment": environment(
                    "cuda" if options.gpus and options.device == "cuda" else "cpu", options.commit
                ),
            },
            indent=2,
        )
        + "\n"
    )
    print(json.dumps(found, indent=2))
    print(file)
    if not found["agrees"]:
        sys.exit("the results differ")


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
        for _ in range(options.rounds):
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
    from modegap.engine.cluster.processes import MEMORY

    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words]
    quiet = {"DASK_LOGGING__DISTRIBUTED": "error", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false"}
    process = subprocess.Popen(command, env={**MEMORY, **_env(), **quiet}, stdout=subprocess.DEVNULL)
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


def by_gpus(options: argparse.Namespace) -> dict[str, Any]:
    """One GPU over the first rows, two over twice as many; each covers its rows several times."""
    import torch

    from modegap.engine.cluster import connect
    from modegap.engine.moments import Moments
    from modegap.engine.reduce import reduce

    rows = options.rows or _GPU_ROWS
    device = options.device
    passes = _GPU_PASSES if device == "cuda" else 2
    store = repeated(options.dir / f"repeated-{2 * rows}x{options.width}.zarr", 2 * rows, options.width)
    wanted = {
        n: reduce(store, POINT, Moments(), stop=n * rows, device=device).covariance.cpu() for n in (1, 2)
    }
    gap = 0.0
    torchrun: dict[int, float] = {}
    fixed: dict[int, float] = {}
    dask: dict[int, float] = {}
    for count in (1, 2):
        out = options.dir / f"share-{count}.pt"
        command = [sys.executable, "-m"]
        if count > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        command += ["bench.scaling", "--share", str(store.path), "--rows", str(count * rows), "--device", device,
                    "--dir", str(out)]  # fmt: skip
        subprocess.run(command, env=_env(), check=True)
        kept = torch.load(out)
        torchrun[count], fixed[count] = kept["seconds"], kept["seconds of few rows"]
        gap = max(gap, _gap(kept["covariance"], wanted[count]))
        with connect(f"local:{count}") as cluster:
            cluster.ready()
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                found = reduce(store, POINT, Moments(), stop=count * rows, device=device, cluster=cluster)
                times.append(time.perf_counter() - begin)
            dask[count] = statistics.median(times[1:])
            gap = max(gap, _gap(found.covariance.cpu(), wanted[count]))
    ratio = 2 * torchrun[1] / torchrun[2]
    return {
        "rows a GPU": rows,
        "width": options.width,
        "passes": passes,
        "device": device,
        "torchrun, seconds": torchrun,
        "torchrun, seconds of a pass over 16,384 rows a GPU": fixed,
        "torchrun, weak scaling": ratio,
        "goal": GOAL_WEAK,
        "dask, seconds a pass with its tasks": dask,
        "largest relative difference": gap,
        "agrees": gap <= TOLERANCE,
        "met": ratio >= GOAL_WEAK,
    }


def share(path: Path, rows: int, device: str, out: Path) -> None:
    """What a process of torchrun (or one alone) does: several passes over its part of the rows."""
    import torch

    from modegap.engine.moments import Moments
    from modegap.engine.parallel import launched
    from modegap.engine.parallel import reduce as shared
    from modegap.engine.reduce import reduce
    from modegap.stores import ActivationStore

    store = ActivationStore.open(path)
    with launched() as ranks:

        def once(stop: int) -> Any:
            if ranks is None:
                return reduce(store, POINT, Moments(), stop=stop, device=device)
            return shared(store, POINT, Moments(), stop=stop, device=device, ranks=ranks)

        def timed(stop: int, passes: int) -> tuple[Any, float]:
            once(stop)
            if ranks is not None:
                ranks.barrier()
            begin = time.perf_counter()
            for _ in range(passes):
                found = once(stop)
            float(found.covariance[0, 0])  # on a GPU the work may still be under way
            return found, time.perf_counter() - begin

        few = min(rows, _FEW_ROWS * (1 if ranks is None else ranks.world))
        passes = _GPU_PASSES if device == "cuda" else 2
        fixed = timed(few, passes)[1] / passes
        found, seconds = timed(rows, passes)
        if ranks is None or ranks.first:
            kept = {"covariance": found.covariance.cpu(), "seconds": seconds, "seconds of few rows": fixed}
            torch.save(kept, out)


def repeated(path: Path, rows: int, width: int) -> Any:
    """A store of one random sample over and over: written as fast as the disk takes it."""
    from modegap.stores import ActivationStore, PointPlan, SampleRows, StorePlan

    count = 2048
    lengths = np.full(rows // count, count, dtype=np.int64)
    plan = StorePlan(
        points={POINT: PointPlan(width, "tokens", lengths, stream="adapter")},
        sample_ids=[f"{i:06d}" for i in range(len(lengths))],
        labels={},
        provenance={"generator": "bench.scaling"},
    )
    store = ActivationStore.create(path, plan, exist_ok=True)
    values = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32).astype(np.float16)
    with store.writer() as writer:
        for sample in writer.todo.tolist():
            writer.put(sample, {POINT: SampleRows(tokens=values)})
    return ActivationStore.open(path)


def _gap(found: Any, wanted: Any) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


if __name__ == "__main__":
    main()
