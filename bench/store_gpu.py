"""From a warm store to a GPU: `python -m bench.store_gpu --out DIR [--dir /dev/shm] [--gib 16]`.

fp16 rows of width 4096. A store is written (not timed against anything), then, GB/s of fp16:

  upload      pinned memory to the GPU, 16 MiB at a time
  preadv      the chunks' files into pinned buffers, by threads; no checks
  mmap        the same from memory maps that are faulted in already
  verified    the same through `RowArray.chunk`, checksums compared on the host
  stream      `stream(store, device="cuda")`, verified on the GPU, on the host and not at all; by readers and by rows
              a batch; with KvikIO, if it is installed, and (by readers, too) without
  checksum    the kernel that verifies: the chunks of one buffer, and one chunk
  covariance  `reduce(store, point, Moments(), device="cuda")`, from the call to the result on the GPU
  compute     the same reduction over batches that are on the GPU already

Gates first: every row on the GPU equals what was written, bit for bit; a flipped bit is found; and the covariance
equals one computed in fp64 without the store. Goals: stream over the lower of upload and mmap >= 0.80, covariance
>= 0.75 of it. `--device cpu` runs everything without a GPU, to try the script.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from modegap.engine.batch import ActivationBatch
from modegap.engine.moments import Moments
from modegap.engine.reduce import reduce
from modegap.engine.stream import stream
from modegap.engine.upload import CudaCopies
from modegap.kernels import crc32c
from modegap.stores import (
    ActivationStore,
    PointPlan,
    RowArray,
    SampleRows,
    StorePlan,
    aligned_empty,
)

from .store_gpu_report import HostSums, complaint, goals, machine, roomy

WIDTH, SAMPLE_ROWS, BLOCKS = 4096, 512, 37
"""37 different samples, each written many times; its first row also holds the sample's number."""
CHUNK = 16 << 20
THREADS = (1, 2, 4, 8, 12, 16)
# the rows repeat 18,944 different ones, whose rounding in fp16 therefore does not average out
TOLERANCE = 2e-5


class Rows:
    """What the store holds, computed without it."""

    def __init__(self, samples: int, device: torch.device) -> None:
        """37 blocks of normal rows with channel means."""
        rng = np.random.default_rng(0)
        base = rng.standard_normal((BLOCKS * SAMPLE_ROWS, WIDTH), dtype=np.float32)
        base *= 10 ** rng.uniform(-1, 1, WIDTH).astype(np.float32)
        base += rng.standard_normal(WIDTH).astype(np.float32)
        self.base = base.astype(np.float16)
        self.samples = samples
        self.device = torch.from_numpy(self.base).to(device)

    def sample(self, index: int) -> np.ndarray:
        """fp16 [512, d]."""
        lo = index % BLOCKS * SAMPLE_ROWS
        rows = self.base[lo : lo + SAMPLE_ROWS].copy()
        rows[0, :2] = index % 2048, index // 2048
        return rows

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start to stop, whole samples, on the device."""
        first, last = start // SAMPLE_ROWS, stop // SAMPLE_ROWS
        sample = torch.arange(first, last, device=self.device.device)
        out = self.device.view(BLOCKS, SAMPLE_ROWS, WIDTH)[sample % BLOCKS]
        out[:, 0, 0] = (sample % 2048).half()
        out[:, 0, 1] = (sample // 2048).half()
        return out.view(-1, WIDTH)

    def blocks(self, size: int = 16384) -> Iterator[torch.Tensor]:
        """All rows, block by block."""
        total = self.samples * SAMPLE_ROWS
        for lo in range(0, total, size):
            yield self.rows(lo, min(lo + size, total))


class Bench:
    """One store, one device, and the report."""

    def __init__(self, folder: Path, gib: float, device: str, rounds: int) -> None:
        """Write the store."""
        self.device = torch.device(device)
        self.rounds = rounds
        samples = max(int(gib * 2**30) // (4 * SAMPLE_ROWS * WIDTH * 2), 2) * 4
        self.rows = Rows(samples, self.device)
        self.path = folder / "gpu.zarr"
        begin = time.perf_counter()
        sync, os.fsync = os.fsync, lambda descriptor: None
        try:
            plan = StorePlan(
                {"p": PointPlan(WIDTH, "tokens", np.full(samples, SAMPLE_ROWS))},
                [str(i) for i in range(samples)],
            )
            with ActivationStore.create(self.path, plan).writer(depth=6) as writer:
                for index in range(samples):
                    writer.put(index, {"p": SampleRows(self.rows.sample(index))})
        finally:
            os.fsync = sync
        self.write_s = time.perf_counter() - begin
        self.store = ActivationStore.open(self.path)
        self.array: RowArray = self.store.rows("p")
        self.files = [self.path / f"points/p/rows/c/{k}/0" for k in range(self.array.n_chunks)]
        self.bytes = samples * SAMPLE_ROWS * WIDTH * 2

    def buffer(self) -> torch.Tensor:
        """One chunk of pinned memory (plain memory without a GPU)."""
        shape = (self.array.chunk_rows, WIDTH)
        if self.device.type == "cpu":
            return torch.from_numpy(aligned_empty(shape, np.float16))
        return torch.empty(shape, dtype=torch.float16, pin_memory=True)

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, run: Callable[[], int], rounds: int | None = None) -> dict[str, float]:
        """GB/s: median, slowest and fastest of the rounds, after one that does not count."""
        run()
        taken = []
        for _ in range(rounds or self.rounds):
            self.sync()
            begin = time.perf_counter()
            size = run()
            self.sync()
            taken.append(size / (time.perf_counter() - begin) / 1e9)
        return {"gbps": statistics.median(taken), "slowest": min(taken), "fastest": max(taken)}

    def gate_rows(self) -> dict[str, Any]:
        """Every row, verified and not, is what was written."""
        for verify in (True, False):
            at = 0
            for batch in stream(self.store, "p", device=self.device, verify=verify):
                if batch.start != at or not torch.equal(batch.x, self.rows.rows(at, batch.end)):
                    return {"passed": False, "verify": verify, "rows": [at, batch.end]}
                at = batch.end
            if at != self.array.shape[0]:
                return {"passed": False, "verify": verify, "rows_seen": at}
        return {"passed": True, "rows": at}

    def gate_damage(self) -> dict[str, Any]:
        """One bit of one chunk, changed and put back: the stream must end there with the host's own words."""
        chunk = self.array.n_chunks * 2 // 3
        for at in (0, CHUNK // 3, self.files[chunk].stat().st_size - 1):
            self.flip(chunk, at)
            try:
                said = [complaint(lambda: self.array.chunk(chunk)), complaint(self.read_all)]
            finally:
                self.flip(chunk, at)
            if said[0] is None or said[0] != said[1]:
                return {"passed": False, "byte": at, "said": said}
        return {"passed": True}

    def flip(self, chunk: int, at: int) -> None:
        """Change one bit of a chunk's file."""
        with self.files[chunk].open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 8]))

    def read_all(self) -> int:
        """All rows to the device, as a user gets them; nothing else is done with them."""
        return sum(batch.x.nbytes for batch in stream(self.store, "p", device=self.device))

    def gate_covariance(self) -> dict[str, Any]:
        """The same bits as from batches that were on the device all along, and close to fp64."""
        found = reduce(self.store, "p", Moments(), device=self.device).covariance
        moments = Moments()
        for at, block in enumerate(self.rows.blocks()):
            moments.update(ActivationBatch(block, at * 16384, "p"))
        same = torch.equal(moments.finalize().covariance, found)
        total = torch.zeros(WIDTH, dtype=torch.float64, device=self.device)
        gram = torch.zeros((WIDTH, WIDTH), dtype=torch.float64, device=self.device)
        centre = self.rows.device.double().mean(0)
        for block in self.rows.blocks():
            x = block.double() - centre
            total += x.sum(0)
            gram.addmm_(x.T, x)
        n = self.array.shape[0]
        exact = (gram - torch.outer(total, total) / n) / (n - 1)
        spread = exact.diagonal().sqrt()
        error = float(((found.double() - exact).abs() / torch.outer(spread, spread)).max())
        return {
            "passed": same and error <= TOLERANCE,
            "same_bits": same,
            "error": error,
            "tolerance": TOLERANCE,
        }

    def upload(self) -> dict[str, float]:
        """Pinned chunks to the device, one stream."""
        sources = [self.buffer() for _ in range(8)]
        target = torch.empty((8, *sources[0].shape), dtype=torch.float16, device=self.device)
        times = max(self.bytes // CHUNK, 8)

        def run() -> int:
            for k in range(times):
                target[k % 8].copy_(sources[k % 8], non_blocking=True)
            return times * sources[0].nbytes

        return self.rate(run)

    def threaded(self, threads: int, work: Callable[[int, torch.Tensor], object]) -> dict[str, float]:
        """Each thread reads its share of the chunks into a buffer of its own."""
        buffers = [self.buffer() for _ in range(threads)]
        count = min(len(self.files), threads * 128)  # 2 GiB a thread: one thread would take seconds

        def part(index: int) -> None:
            for k in range(index, count, threads):
                work(k, buffers[index])

        with ThreadPoolExecutor(threads) as pool:

            def run() -> int:
                list(pool.map(part, range(threads)))
                return count * CHUNK

            return self.rate(run)

    def preadv(self, k: int, buffer: torch.Tensor) -> None:
        """One chunk's file, not checked."""
        descriptor = os.open(self.files[k], os.O_RDONLY)
        try:
            os.preadv(descriptor, [memoryview(buffer.numpy()).cast("B")], 0)
        finally:
            os.close(descriptor)

    def mapped(self) -> Callable[[int, torch.Tensor], None]:
        """Copies from memory maps of all files; the first copy of each faults it in."""
        maps = []
        for file in self.files:
            with file.open("rb") as opened:
                whole = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
            maps.append(np.frombuffer(whole, np.float16, CHUNK // 2).reshape(-1, WIDTH))

        def copy(k: int, buffer: torch.Tensor) -> None:
            np.copyto(buffer.numpy(), maps[k])

        return copy

    def streamed(self, readers: int | None, verify: bool, batch_rows: int | None = None) -> dict[str, float]:
        """All rows to the device; nothing else is done with them."""

        def run() -> int:
            batches = stream(
                self.store, "p", device=self.device, readers=readers, verify=verify, batch_rows=batch_rows
            )
            return sum(batch.x.nbytes for batch in batches)

        return self.rate(run)

    def without_kvikio(self) -> dict[str, dict[str, float]]:
        """Stream and covariance by threads of Python."""
        with patch.object(CudaCopies, "files", lambda self, threads: None):
            return {"stream": self.streamed(None, True), "covariance": self.covariance()}

    def by_readers(self, counts: list[int]) -> dict[str, dict[str, float]]:
        """Stream by so many threads of Python: KvikIO's pool only grows in a process."""
        with patch.object(CudaCopies, "files", lambda self, threads: None):
            return {str(count): self.streamed(count, True) for count in counts}

    def verified_on_the_host(self) -> dict[str, float]:
        """The same where the GPU sums nothing."""
        with patch("modegap.engine.stream.CudaCopies", HostSums):
            return self.streamed(None, True)

    def checksum(self) -> dict[str, dict[str, float]]:
        """Microseconds and GB/s of the kernel, with its launch."""
        chunks, repeats = (8, 20) if self.device.type == "cuda" else (1, 1)
        content = torch.randint(-(2**31), 2**31, (chunks, CHUNK // 4), device=self.device).to(torch.int32)

        def time_of(blocks: torch.Tensor) -> dict[str, float]:
            def run() -> int:
                for _ in range(repeats):
                    crc32c(blocks)
                return repeats * blocks.nbytes

            rates = self.rate(run)
            return {"us": blocks.nbytes / rates["gbps"] / 1e3, **rates}

        return {f"{k} chunks": time_of(content[:k]) for k in sorted({chunks, 1})}

    def covariance(self) -> dict[str, float]:
        """What a user calls."""

        def run() -> int:
            reduce(self.store, "p", Moments(), device=self.device)
            return self.bytes

        return self.rate(run)

    def compute(self) -> dict[str, float]:
        """The reduction alone, of batches as `stream` cuts them."""
        x = self.rows.rows(0, min(16384, self.rows.samples * SAMPLE_ROWS))
        times = max(self.bytes // x.nbytes, 1)

        def run() -> int:
            moments = Moments()
            for k in range(times):
                moments.update(ActivationBatch(x, k * len(x), "p"))
            moments.finalize()
            return times * x.nbytes

        return self.rate(run)


def steps(bench: Bench) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The measurements in order of importance."""
    counts = [threads for threads in THREADS if threads <= len(os.sched_getaffinity(0))]
    yield "upload", bench.upload
    copy = bench.mapped()
    yield "mmap", lambda: {str(t): bench.threaded(t, copy) for t in counts}
    yield "stream", lambda: {"default": bench.streamed(None, True)}
    yield "stream, not verified", lambda: {"default": bench.streamed(None, False)}
    yield "stream, verified on the host", lambda: {"default": bench.verified_on_the_host()}
    yield "covariance", bench.covariance
    yield "without KvikIO", bench.without_kvikio
    yield "compute", bench.compute
    yield "checksum", bench.checksum
    yield "preadv", lambda: {str(t): bench.threaded(t, bench.preadv) for t in counts}
    yield (
        "verified",
        lambda: {
            str(t): bench.threaded(t, lambda k, out: bench.array.chunk(k, out.numpy(), threads=1))
            for t in counts
        },
    )
    yield "stream by readers, without KvikIO", lambda: bench.by_readers(counts)
    sizes = (2048, 4096, 8192, 16384, 32768)
    yield "stream by batch rows", lambda: {str(rows): bench.streamed(None, True, rows) for rows in sizes}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for store_gpu.json")
    parser.add_argument("--dir", type=Path, help="where the store goes (default: /dev/shm, or what has room)")
    parser.add_argument("--gib", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=140, help="no further measurement begins after these"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--commit", help="what the checkout is, where git cannot tell")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(options.device, options.commit), "rounds": options.rounds}

    def save() -> None:
        (options.out / "store_gpu.json").write_text(json.dumps(report, indent=1) + "\n")

    with tempfile.TemporaryDirectory(dir=options.dir or roomy(options.gib)) as name:
        bench = Bench(Path(name), options.gib, options.device, options.rounds)
        report |= {"folder": str(Path(name).parent), "bytes": bench.bytes, "write_s": bench.write_s}
        report["gates"] = {
            "rows": bench.gate_rows(),
            "damage": bench.gate_damage(),
            "covariance": bench.gate_covariance(),
        }
        print(json.dumps(report), flush=True)
        save()
        if not all(gate["passed"] for gate in report["gates"].values()):
            return 1
        for step, run in steps(bench):
            if time.monotonic() > end:
                report.setdefault("skipped", []).append(step)
                continue
            try:
                report[step] = run()
            except Exception:  # the rest is still worth having
                report.setdefault("failed", {})[step] = traceback.format_exc()
            print(step, json.dumps(report.get(step, "failed")), flush=True)
            save()
    try:
        report["goals"] = goals(report)
    except KeyError as missing:
        report["goals"] = f"not known: {missing} was not measured"
    print("goals", json.dumps(report["goals"]), flush=True)
    save()
    return 1 if report.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
