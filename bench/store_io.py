"""Time the store beside what the same bytes cost without it: `python bench/store_io.py [--json FILE]`.

fp16 rows of width 4096, page cache warm, every provider in turn in each of five rounds, medians. Wall time is
what a user waits; CPU time (all threads of the process) stays comparable on a machine that is not idle.

  read   an aligned preadv of the same files; `RowArray.chunk` with one and two threads; `RowArray.chunks`;
         zarr-python on the same store (into numpy's own memory, as it offers)
  write  ndarray.tofile of the same chunks; the store's writer; the published scripts' loop (HDF5 float32, the
         file reopened for every row, fewer rows). Without fsync, which is timed apart for the first two.
  row    one random row: `RowArray.read` without and with its chunk's checksum, and zarr-python
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from modegap.stores import ActivationStore, PointPlan, RowArray, SampleRows, StorePlan, aligned_empty

WIDTH, SAMPLE_ROWS = 4096, 512
PAPER_ROWS = 64
Call = Callable[[], int]


@contextmanager
def without_sync() -> Iterator[None]:
    """Leave fsync out: what is compared then is copying, checking and checksums."""
    original = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = original


def measure(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """GB/s by wall and by CPU time, medians of `rounds` after one to warm up; each call returns its bytes."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    sizes = {}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            sizes[name] = call()
            if turn:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_gbps": sizes[name] / statistics.median(wall for wall, _ in taken) / 1e9,
            "cpu_gbps": sizes[name] / statistics.median(cpu for _, cpu in taken) / 1e9,
        }
        for name, taken in times.items()
    }


def writers(folder: Path, rows: np.ndarray, samples: int) -> dict[str, Call]:
    """Each writes to a place of its own, removed before."""
    plan = StorePlan(
        {"p": PointPlan(WIDTH, "tokens", np.full(samples, SAMPLE_ROWS))}, [str(i) for i in range(samples)]
    )
    block = np.concatenate([rows] * (plan.infos()["p"].chunk_rows // SAMPLE_ROWS))

    def fresh(name: str) -> Path:
        shutil.rmtree(folder / name, ignore_errors=True)
        return folder / name

    def tofile(sync: bool) -> int:
        place = fresh("tofile")
        place.mkdir()
        for k in range(samples * SAMPLE_ROWS // len(block)):
            with (place / str(k)).open("wb") as file:
                block.tofile(file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        return samples * rows.nbytes

    def store() -> int:
        made = ActivationStore.create(fresh("s.zarr"), plan)
        with made.writer() as writer:
            for sample in range(samples):
                writer.put(sample, {"p": SampleRows(rows)})
        return samples * rows.nbytes

    def store_without_sync() -> int:
        with without_sync():
            return store()

    def paper_loop() -> int:
        import h5py

        with h5py.File(folder / "paper.h5", "w") as file:
            file.create_dataset("p", (PAPER_ROWS, WIDTH), "float32", chunks=(min(256, PAPER_ROWS), WIDTH))
        for row in range(PAPER_ROWS):
            with h5py.File(folder / "paper.h5", "a") as file:
                file["p"][row : row + 1] = rows[row : row + 1]
                file.flush()
        return PAPER_ROWS * WIDTH * 2

    return {
        "tofile": lambda: tofile(False),
        "store": store_without_sync,
        "tofile, synced": lambda: tofile(True),
        "store, synced": store,
        "HDF5 reopened for every row": paper_loop,
    }


def readers(rows: RowArray, files: list[Path], zarr_array: Any) -> dict[str, Call]:
    """All read every chunk, the direct ones into one reused buffer."""
    buffer = aligned_empty((rows.chunk_rows, WIDTH), np.float16)
    raw = memoryview(buffer).cast("B")
    total = rows.shape[0] * WIDTH * 2

    def preadv() -> int:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            os.preadv(descriptor, [raw], 0)
            os.close(descriptor)
        return total

    def chunk(threads: int) -> int:
        for k in range(rows.n_chunks):
            rows.chunk(k, buffer, threads=threads)
        return total

    def ahead() -> int:
        return sum(values.nbytes for _, values, _ in rows.chunks())

    def zarr_python() -> int:
        size = rows.chunk_rows
        return sum(zarr_array[size * k : size * (k + 1)].nbytes for k in range(rows.n_chunks))

    return {
        "preadv": preadv,
        "chunk, 1 thread": lambda: chunk(1),
        "chunk, 2 threads": lambda: chunk(2),
        "chunks": ahead,
        "zarr-python": zarr_python,
    }


def sharded_readers(folder: Path, rows: np.ndarray, samples: int) -> dict[str, Call]:
    """The same rows in shards of 64 MiB: our reader with one thread, and zarr-python."""
    import zarr

    points = {"p": PointPlan(WIDTH, "tokens", np.full(samples, SAMPLE_ROWS))}
    plan = StorePlan(points, [str(i) for i in range(samples)], profile="sharded")
    store = ActivationStore.create(folder / "sharded.zarr", plan)
    with store.writer(depth=1) as writer:
        for sample in range(samples):
            writer.put(sample, {"p": SampleRows(rows)})
    theirs = zarr.open_array(str(folder / "sharded.zarr/points/p/rows"), mode="r")
    calls = readers(store.rows("p"), [], theirs)
    return {name: calls[name] for name in ("chunk, 1 thread", "chunk, 2 threads", "zarr-python")}


def random_rows(rows: RowArray, zarr_array: Any, count: int = 200) -> dict[str, float]:
    """Median microseconds of one random row."""
    picks = np.random.default_rng(1).integers(0, rows.shape[0], count).tolist()
    out = aligned_empty((1, WIDTH), np.float16)
    found = {}
    cases: dict[str, tuple[Callable[[int], object], int]] = {
        "read, verify=False": (lambda i: rows.read(i, i + 1, out, verify=False), count),
        "read (whole chunk checked)": (lambda i: rows.read(i, i + 1, out), count // 10),
        "zarr-python": (lambda i: zarr_array[i], count // 10),
    }
    for name, (call, times) in cases.items():
        taken = []
        for row in picks[:times]:
            begin = time.perf_counter()
            call(row)
            taken.append(time.perf_counter() - begin)
        found[name] = statistics.median(taken) * 1e6
    return found


def machine() -> dict[str, Any]:
    """Where and with what this ran."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    packages = ("modegap", "numpy", "zarr", "h5py", "google-crc32c", "awscrt")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "checksum": "awscrt" if "awscrt" in sys.modules else "google_crc32c",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to put the result")
    parser.add_argument("--dir", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--mib", type=int, default=256, help="size of the rows")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import zarr

    rows = np.random.default_rng(0).standard_normal((SAMPLE_ROWS, WIDTH), dtype=np.float32).astype(np.float16)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        report: dict[str, Any] = {"machine": machine(), "mib": options.mib, "rounds": options.rounds}
        report["write"] = measure(writers(folder, rows, options.mib * 2**20 // rows.nbytes), options.rounds)
        array = ActivationStore.open(folder / "s.zarr").rows("p")
        files = [folder / f"s.zarr/points/p/rows/c/{k}/0" for k in range(array.n_chunks)]
        theirs = zarr.open_array(str(folder / "s.zarr/points/p/rows"), mode="r")
        report["read"] = measure(readers(array, files, theirs), options.rounds)
        samples = options.mib * 2**20 // rows.nbytes
        report["read_sharded"] = measure(sharded_readers(folder, rows, samples), options.rounds)
        report["random_row_us"] = random_rows(array, theirs)
    for part, base in (("write", "tofile"), ("read", "preadv")):
        for entry in report[part].values():
            for kind in ("wall", "cpu"):
                entry[f"{kind}_over_{base}"] = entry[f"{kind}_gbps"] / report[part][base][f"{kind}_gbps"]
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
