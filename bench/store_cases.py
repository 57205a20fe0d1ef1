"""What `bench.store_io` times: the store's reads and writes, and other people's of the same rows."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modegap.stores import ActivationStore, PointPlan, RowArray, SampleRows, StorePlan, aligned_empty

from .undisturbed import Work

WIDTH, SAMPLE_ROWS = 4096, 512
PASSES = 4
"""Times that a sample of the faster readers goes over the store: /proc counts in hundredths of a second."""
PAPER_SAMPLES, PAPER_MAX, PAPER_POINTS = 32, 5000, 4
"""Samples written, samples that the file has room for (COCO's), and hook points of the published configuration."""


@contextmanager
def without_sync() -> Iterator[None]:
    """Leave fsync out: what is compared then is copying, checking and checksums."""
    original = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = original


def planned(samples: int, profile: str = "raw") -> StorePlan:
    """A plan of `samples` samples of 512 rows at one point."""
    points = {"p": PointPlan(WIDTH, "tokens", np.full(samples, SAMPLE_ROWS))}
    return StorePlan(points, [str(i) for i in range(samples)], profile=profile)  # type: ignore[arg-type]


def filled(path: Path, rows: np.ndarray, samples: int, profile: str = "raw") -> ActivationStore:
    """A store whose samples all have these rows."""
    store = ActivationStore.create(path, planned(samples, profile))
    with store.writer() as writer:
        for sample in range(samples):
            writer.put(sample, {"p": SampleRows(rows)})
    return store


def writes(folder: Path, rows: np.ndarray, samples: int) -> dict[str, Work]:
    """Each to a place of its own, which is emptied and put aside, untimed, before.

    Not removed: ext4 takes no inode that was deleted in the last minutes, and searching past them made a new
    file cost 0.4 ms where it costs 0.02, for three files a chunk that are no part of how fast rows are written.
    """
    total = samples * rows.nbytes
    plan = planned(samples)
    block = np.concatenate([rows] * (plan.infos()["p"].chunk_rows // SAMPLE_ROWS))

    def tofile(sync: bool) -> int:
        for k in range(samples * SAMPLE_ROWS // len(block)):
            with (folder / "tofile" / str(k)).open("wb") as file:
                block.tofile(file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        return total

    def store() -> int:
        filled(folder / "s.zarr", rows, samples)
        return total

    def store_without_sync() -> int:
        with without_sync():
            return store()

    turn = itertools.count()

    def fresh() -> None:
        for place in (folder / "tofile", folder / "s.zarr"):
            if place.exists():
                for file in place.rglob("*"):
                    if file.is_file():
                        os.truncate(file, 0)
                place.rename(folder / f"emptied-{next(turn)}")
        (folder / "tofile").mkdir()

    paper = PaperLoop(folder / "paper.h5", rows)
    return {
        "tofile": Work(lambda: tofile(False), fresh),
        "store": Work(store_without_sync, fresh),
        "tofile, synced": Work(lambda: tofile(True), fresh),
        "store, synced": Work(store, fresh),
        "published loop": Work(paper.run, paper.prepare),
    }


class PaperLoop:
    """How the published scripts 01 and 02 write: float32 HDF5, reopened for every row of every hook point.

    After a sample's rows its id and one label are written, with one more opening. No fsync.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        """A row a sample and point, float32 as the scripts hand it over."""
        self.path = path
        self.rows = rows[:PAPER_SAMPLES].astype(np.float32)
        self.points = [f"point_{k}" for k in range(PAPER_POINTS)]

    def prepare(self) -> None:
        """The empty file: chunks of 256 rows, ids and labels as strings of any length."""
        import h5py

        with h5py.File(self.path, "w") as file:
            for point in self.points:
                file.create_dataset(point, (PAPER_MAX, WIDTH), "float32", chunks=(min(256, PAPER_MAX), WIDTH))
            for name in ("sample_ids", "label"):
                file.create_dataset(name, (PAPER_MAX,), h5py.string_dtype())

    def run(self) -> int:
        """Write the samples; the bytes are those of the rows in fp16, as everywhere here."""
        import h5py

        for index in range(PAPER_SAMPLES):
            for point in self.points:
                with h5py.File(self.path, "a") as file:
                    file[point][index : index + 1] = self.rows[index : index + 1]
                    file.flush()
            with h5py.File(self.path, "a") as file:
                file["sample_ids"][index] = str(index)
                file["label"][index] = "label"
        return PAPER_SAMPLES * PAPER_POINTS * WIDTH * 2


def reads(rows: RowArray, files: list[Path], zarr_array: Any) -> dict[str, Work]:
    """All read every chunk, the first ones into one reused page-aligned buffer."""
    from zarr.core.buffer.cpu import NDBuffer

    buffer = aligned_empty((rows.chunk_rows, WIDTH), np.float16)
    raw = memoryview(buffer).cast("B")
    total = rows.shape[0] * WIDTH * 2
    size, count = rows.chunk_rows, rows.n_chunks
    target = NDBuffer.from_ndarray_like(buffer)

    def preadv() -> int:
        for file in files * PASSES:
            descriptor = os.open(file, os.O_RDONLY)
            os.preadv(descriptor, [raw], 0)
            os.close(descriptor)
        return total * PASSES

    def chunk(threads: int) -> int:
        for k in [*range(count)] * PASSES:
            rows.chunk(k, buffer, threads=threads)
        return total * PASSES

    def ahead() -> int:
        return sum(values.nbytes for _ in range(PASSES) for _, values, _ in rows.chunks())

    def zarr_python() -> int:
        return sum(zarr_array[size * k : size * (k + 1)].nbytes for k in range(count))

    def zarr_into() -> int:
        for k in range(count):
            zarr_array.get_basic_selection((slice(size * k, size * (k + 1)), slice(None)), out=target)
        return total

    first = {"preadv": Work(preadv)} if files else {}
    return {
        **first,
        "chunk, 1 thread": Work(lambda: chunk(1)),
        "chunk, 2 threads": Work(lambda: chunk(2)),
        "chunks": Work(ahead),
        "zarr-python": Work(zarr_python),
        "zarr-python, into a buffer": Work(zarr_into),
    }


def random_rows(rows: RowArray, zarr_array: Any, count: int = 200) -> dict[str, float]:
    """Median microseconds of one random row."""
    picks = np.random.default_rng(1).integers(0, rows.shape[0], count).tolist()
    out = aligned_empty((1, WIDTH), np.float16)
    cases: dict[str, tuple[Callable[[int], object], int]] = {
        "read, verify=False": (lambda i: rows.read(i, i + 1, out, verify=False), count),
        "read (whole chunk checked)": (lambda i: rows.read(i, i + 1, out), count // 10),
        "zarr-python": (lambda i: zarr_array[i], count // 10),
    }
    found = {}
    for name, (call, times) in cases.items():
        taken = []
        for row in picks[:times]:
            begin = time.perf_counter()
            call(row)
            taken.append(time.perf_counter() - begin)
        found[name] = statistics.median(taken) * 1e6
    return found


def checksums() -> dict[str, Work]:
    """CRC-32C of 1 MiB in the cache: every library that is installed, alone and in two threads at once."""
    import threading

    data = [memoryview(aligned_empty(2**20)) for _ in range(2)]
    found: dict[str, Callable[[memoryview], object]] = {}
    try:
        from awscrt.checksums import crc32c  # type: ignore[import-not-found, unused-ignore]

        found["awscrt"] = crc32c
    except ImportError:
        pass
    import google_crc32c

    found["google_crc32c"] = lambda part: google_crc32c.extend(0, np.frombuffer(part, np.uint8))

    def loop(call: Callable[[memoryview], object], part: memoryview) -> int:
        for _ in range(1000):
            call(part)
        return 1000 * len(part)

    def both(call: Callable[[memoryview], object]) -> int:
        helper = threading.Thread(target=loop, args=(call, data[1]))
        helper.start()
        done = loop(call, data[0])
        helper.join()
        return 2 * done

    cases = {}
    for name, call in found.items():
        cases[name] = Work(lambda call=call: loop(call, data[0]))  # type: ignore[misc]
        cases[f"{name}, 2 threads"] = Work(lambda call=call: both(call))  # type: ignore[misc]
    return cases
