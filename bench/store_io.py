"""Time the store beside what the same bytes cost without it: `python -m bench.store_io [--json FILE]`.

fp16 rows of width 4096, page cache warm, every provider in turn, medians of five samples each, taken while
nobody else used the machine (`bench.undisturbed`). Wall time is what a user waits; CPU time is of all threads.

  write   ndarray.tofile of the same chunks; the store's writer, creation of the store included; the published
          scripts' loop (fewer rows). Without fsync, which is timed apart for the first two.
  read    an aligned preadv of the same files; `RowArray.chunk` with one and two threads; `RowArray.chunks`;
          zarr-python on the same store, into its own memory and into the same buffer
  row     one random row: `RowArray.read` without and with its chunk's checksum, and zarr-python
  memory  growth of a process that reads the whole store, over 1.25 of the block and one chunk a thread
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from modegap.stores import ActivationStore, aligned_empty, checksum

from .out_of_core import ROOT
from .store_cases import SAMPLE_ROWS, WIDTH, checksums, filled, random_rows, reads, writes
from .undisturbed import measure

PACKAGES = ("modegap", "numpy", "zarr", "h5py", "google-crc32c", "awscrt")


def machine(commit: str | None) -> dict[str, Any]:
    """Where and with what this ran; `commit` where git cannot tell."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "checksum": checksum.LIBRARY,
        "commit": commit or subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _status(field: str) -> int:
    """A size of this process in bytes, 0 where the system does not tell."""
    found = [line for line in _lines("/proc/self/status") if line.startswith(field)]
    return int(found[0].split()[1]) * 1024 if found else 0


def _memory_child(path: Path, threads: int) -> None:
    """Print how much this process grows while it reads a store chunk by chunk into one buffer."""
    rows = ActivationStore.open(path).rows("p")
    rows.read(0, 1, verify=False)
    before = _status("VmRSS")
    buffer = aligned_empty((rows.chunk_rows, WIDTH), np.float16)
    for k in range(rows.n_chunks):
        rows.chunk(k, buffer, threads=threads)
    print(_status("VmHWM") - before, buffer.nbytes * (1.25 + threads))


def memory(path: Path) -> dict[str, float]:
    """Growth of a reading process over what it is allowed, for one and two threads."""
    out = {}
    for threads in (1, 2):
        command = [sys.executable, "-m", "bench.store_io", "--memory-of", str(path), str(threads)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        grown, allowed = map(float, done.split())
        out[f"{threads} threads"] = grown / allowed
    return out


def goals(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal with what was found."""

    def rate(part: str, name: str) -> float:
        return float(report[part][name]["wall_gbps"])

    preadv, zarr = rate("read", "preadv"), "zarr-python"
    found = {
        "read, 1 thread / preadv": (rate("read", "chunk, 1 thread") / preadv, 0.75),
        "read, 2 threads / preadv": (rate("read", "chunk, 2 threads") / preadv, 0.90),
        "read / zarr-python": (rate("read", "chunk, 2 threads") / rate("read", zarr), 1.6),
        "read / zarr-python, sharded": (
            rate("read_sharded", "chunk, 2 threads") / rate("read_sharded", zarr),
            4.0,
        ),
        "write / tofile": (rate("write", "store") / rate("write", "tofile"), 0.75),
        "write / published loop": (rate("write", "store") / rate("write", "published loop"), 100.0),
    }
    entries = [
        {"goal": name, "at_least": goal, "found": value, "met": value >= goal}
        for name, (value, goal) in found.items()
    ]
    for name, value, most in (
        ("random row, us", report["random_row_us"]["read, verify=False"], 60.0),
        ("peak memory over allowance", max(report["memory"].values()), 1.0),
    ):
        entries.append({"goal": name, "at_most": most, "found": value, "met": value <= most})
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to put the result")
    parser.add_argument("--dir", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--mib", type=int, default=512, help="size of the rows that are read")
    parser.add_argument("--write-mib", type=int, default=1024, help="size of the rows that are written")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="longest wait for quiet samples, a part")
    parser.add_argument("--commit", help="what the checkout is, where git cannot tell")
    parser.add_argument("--memory-of", nargs=2, metavar=("STORE", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        _memory_child(Path(options.memory_of[0]), int(options.memory_of[1]))
        return
    import zarr

    rows = np.random.default_rng(0).standard_normal((SAMPLE_ROWS, WIDTH), dtype=np.float32).astype(np.float16)
    samples = options.mib * 2**20 // rows.nbytes
    pace = (options.rounds, options.seconds)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        report: dict[str, Any] = {
            "machine": machine(options.commit),
            "mib": options.mib,
            "write_mib": options.write_mib,
            "rounds": options.rounds,
        }
        report["write"] = measure(writes(folder, rows, options.write_mib * 2**20 // rows.nbytes), *pace)
        for place in folder.iterdir():
            shutil.rmtree(place, ignore_errors=True)
        for part, profile in (("read", "raw"), ("read_sharded", "sharded")):
            array = filled(folder / f"{profile}.zarr", rows, samples, profile).rows("p")
            place = folder / f"{profile}.zarr/points/p/rows"
            files = [place / f"c/{k}/0" for k in range(array.n_chunks)] if profile == "raw" else []
            theirs = zarr.open_array(str(place), mode="r")
            report[part] = measure(reads(array, files, theirs), *pace)
            if profile == "raw":
                report["random_row_us"] = random_rows(array, theirs)
                report["memory"] = memory(folder / "raw.zarr")
        report["checksum"] = measure(checksums(), *pace)
    for part, base in (("write", "tofile"), ("read", "preadv")):
        for entry in report[part].values():
            entry[f"over_{base}"] = entry["wall_gbps"] / report[part][base]["wall_gbps"]
    report["goals"] = goals(report)
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
